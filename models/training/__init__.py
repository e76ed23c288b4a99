"""PyTorch twin, trainers and exporter of Backstory's models."""
