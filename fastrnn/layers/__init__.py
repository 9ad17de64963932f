"""Layers: parameters, shapes, validation; forward directly above backward. They call kernels and nothing above."""
