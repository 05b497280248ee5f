"""Stage: training. Rollout, advantages, update and checkpoints of Flow-GRPO and STAR."""
