"""The transforms that Beam YAML's `type: python` provider finds here: `Predict: headrace.beam.yaml.Predict`."""

from headrace.transforms.beam.predict_rows import PredictRows as Predict

__all__ = ["Predict"]
