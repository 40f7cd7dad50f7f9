"""Recordings of a forward: what a method needs of a model, after which all is as it was.

The only place that hooks a model or watches the functions of torch. A forward runs to its end; what
a map is made of has run, and is read where it ran.
"""
