"""Arrays in, packed arrays out: packing, rounding, policy, report."""
