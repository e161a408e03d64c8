"""Training an adapter: what the base says (teacher), how budgets are drawn (plan), what is minimised
(objectives), how well it works on held-out dialogues (validation), and the loop (engine)."""
