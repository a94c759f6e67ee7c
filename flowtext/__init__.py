"""The helper package of *The Integral of a Diffusion Model*.

Data flows one way: path -> net -> objective -> fit -> solve or hop -> score.
Import from the modules: `from flowtext.solve import euler, grid, integrate`.
"""

__version__ = "0.2.0"
