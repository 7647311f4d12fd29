"""What the results of a sweep say: pure functions over its table, each with its formula.

observations   the figures that may be compared, and what was left out and why
cell_means     the linear model cell + seed, in which every question is a contrast of cells, and what cells rank by
factors        those contrasts: main effects and interactions of a design, grid or not, and what is aliased
effects        their estimates with intervals, corrected for looking at many
differences    every cell against the baseline, paired by seed
verdict        whether there is a winner, and how many more seeds would tell
pareto         quality against device-hours
speed          device-hours to the baseline's final quality
importance     which searched setting moved the metric
"""
