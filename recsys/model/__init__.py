"""The ranking model, its layers and compiled kernels, retrieval vectors and prediction metrics."""
