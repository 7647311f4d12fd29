"""Measure images: FID, CMMD, DINO-MMD, prompt adherence and training throughput."""
