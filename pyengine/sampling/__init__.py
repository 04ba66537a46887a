"""From logits to tokens: a row of stages, each with state per device row, each free for rows that do not use it."""
