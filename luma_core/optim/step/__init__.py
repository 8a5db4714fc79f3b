"""Taking a step: what is checked first, which backend takes each parameter, what is reduced."""
