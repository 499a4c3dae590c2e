"""The paper's tables and figures as plans of independent jobs, where they run, and what they say of its claims."""
