"""VQA2.0: open-ended questions about photographs."""
