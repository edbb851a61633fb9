"""Session 7's networks are the paper's, for images of 32×32."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet34

from models.model7 import ResNet18, ResNet34


@torch.no_grad()
@pytest.mark.parametrize(
    "network, reference, parameters", [(ResNet18, resnet18, 11_173_962), (ResNet34, resnet34, 21_282_122)]
)
def test_network_is_torchvisions_with_a_3x3_stem_and_a_quarter_of_its_logits(network, reference, parameters):
    torch.manual_seed(0)
    model, reference = network(), reference(num_classes=10)
    reference.conv1, reference.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    weights = model.state_dict().items()
    reference.load_state_dict({name.replace("shortcut", "downsample"): weight for name, weight in weights})
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), reference(images) / 4)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
