"""Models: what a checkpoint says about itself (torch-free), the graphs that run it, and the way its weights are read.

``config`` and ``registry`` describe, ``decoder`` computes, ``weights`` reads, ``resolve`` finds the files.
Importing this package or ``models.config`` never imports torch.
"""
