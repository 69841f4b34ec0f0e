"""The PyTorch side: runs the teacher on views of ARC tasks and fills a feature store."""
