"""The GRPO training loop and supervised fine-tuning."""
