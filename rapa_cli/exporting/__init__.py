"""Networks in forms that other programs read: ONNX, torch.export, state dictionaries, aihwkit's weights."""
