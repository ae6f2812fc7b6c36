"""Where workers come from: one module per kind of place. So far, this machine.

Each turns worker classes or settings into a `distributed` cluster object; no policy lives here.
"""
