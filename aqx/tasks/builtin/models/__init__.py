"""Published image classifiers as Flax Linen modules, each a function of its activation."""

from aqx.tasks.builtin.models.all_cnn_c import AllCNNC
from aqx.tasks.builtin.models.mobilevit_v2 import MobileViTv2
from aqx.tasks.builtin.models.resnet import ResNet
from aqx.tasks.builtin.models.vit import ViT

__all__ = ["AllCNNC", "MobileViTv2", "ResNet", "ViT"]
