"""The Triton kernels. Importing a file here imports Triton; `fxperex.kernels` does so on the first
launch.
"""
