"""The run directory is the API: every path, what is done, and from which inputs. No torch."""
