"""Where and when: deployment files, the ``refit`` command, Prefect's server."""
