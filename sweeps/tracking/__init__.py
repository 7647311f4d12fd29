"""Copies of a sweep in the places where teams look at runs: W&B, TensorBoard, MLflow.

A process of its own (`follower`) reads the sweep's folder, which is the truth, and writes what a tracker does not have
yet (`trackers`). So nothing that a tracker does can slow a trial down or fail it, replayed trials are tracked like
trained ones, and after a crash the next run of the sweep completes the copies without repeating anything.
"""
