"""A Hugging Face Trainer of a small vision transformer for the digits."""

from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from examples.digits import x, y

config = ViTConfig(
    image_size=8,
    patch_size=4,
    num_channels=1,
    num_labels=10,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=4,
)
arguments = TrainingArguments(
    "gwa-demo/trainer",  # where a Trainer writes
    num_train_epochs=20,
    per_device_train_batch_size=64,
    learning_rate=3e-3,
    save_strategy="no",
    report_to=[],
)
rows = [
    {"pixel_values": image.reshape(1, 8, 8), "labels": label}
    for image, label in zip(x, y, strict=True)
]
trainer = Trainer(ViTForImageClassification(config), arguments, train_dataset=rows)
