"""Optional doors to other libraries; none is imported unless you import it."""
