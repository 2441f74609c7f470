"""Rollouts: how a candidate takes over from the serving release, step by step, and how it is undone.

`machine` has the rules as pure functions, `judging` the statistical tests, `answers` the checks of answers, and
`records` the stored state. The controller that follows them inside Ray Serve is `warren_serve.rollout_controller`.
"""
