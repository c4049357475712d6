"""Networks of the lectures: their figures, and that each trains and exports."""
