"""From scores and a budget to what is kept: budgets, policies, selection, closing."""
