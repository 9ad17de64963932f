"""What this machine is and what it can do, measured in the same run as everything else.

about       its name, and who else is using it
crew        one function on several threads at once
peak        multiply-adds per second
bandwidth   bytes read per second, from the cache level where a case's weights fit, or from memory
exchange    how soon one processor sees what another one has written
"""
