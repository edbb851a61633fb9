"""Session 7 of EVA8: ResNet-18 for images of 32×32 pixels.

Source: He et al., "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385.
The paper's ImageNet stem (a 7×7 convolution with stride 2 and max pooling) would reduce a 32×32
image to 8×8 before the first block. A 3×3 convolution with stride 1 replaces it.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Conv 3×3 → BN → ReLU → Conv 3×3 → BN, plus the input, → ReLU.

    Shapes: ``(B, channels_in, H, W)`` → ``(B, channels_out, H/stride, W/stride)``. If the shape
    changes, a 1×1 convolution projects the input to the new shape.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


def stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
    """``blocks`` residual blocks; the first one changes the number of channels and the size."""
    first = BasicBlock(channels_in, channels_out, stride)
    return nn.Sequential(
        first, *(BasicBlock(channels_out, channels_out, stride=1) for _ in range(blocks - 1))
    )


class ResNet(nn.Module):
    """Image ``(B, 3, 32, 32)`` → logits ``(B, 10)``; ``blocks`` are those in each of four stages.

    The inputs of the last layer are 512 averages of ReLU outputs, all positive: their weights'
    gradients have one sign, so a single step can move a logit far. Logits scaled by 1/4 allow a
    higher learning rate.
    """

    LOGIT_SCALE = 0.25

    def __init__(self, blocks: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(64, 64, blocks[0], stride=1)
        self.layer2 = stage(64, 128, blocks[1], stride=2)
        self.layer3 = stage(128, 256, blocks[2], stride=2)
        self.layer4 = stage(256, 512, blocks[3], stride=2)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))  # (B, 64, 32, 32)
        x = self.layer1(x)  # (B, 64, 32, 32)
        x = self.layer2(x)  # (B, 128, 16, 16)
        x = self.layer3(x)  # (B, 256, 8, 8)
        x = self.layer4(x)  # (B, 512, 4, 4)
        return self.LOGIT_SCALE * self.fc(self.gap(x).flatten(1))  # (B, 10)


def ResNet18() -> ResNet:
    """The assigned network: 11,173,962 parameters."""
    return ResNet((2, 2, 2, 2))


def ResNet34() -> ResNet:
    """The alternative that the assignment allows: 21,282,122 parameters."""
    return ResNet((3, 4, 6, 3))
