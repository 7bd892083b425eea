"""Room: tracking. The run's own record (local), and mirrors of it that can never stop a run."""
