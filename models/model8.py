"""Session 8 of EVA8: a custom ResNet, modeled on https://github.com/davidcpage/cifar10-fast."""

from torch import Tensor, nn


def conv_bn_relu(channels_in: int, channels_out: int, pool: bool = False) -> list[nn.Module]:
    """3×3 convolution (same size) → max pooling by 2 if ``pool`` → BatchNorm → ReLU."""
    return [
        nn.Conv2d(
            channels_in, channels_out, kernel_size=3, padding=1, bias=False
        ),  # BatchNorm has a bias
        *([nn.MaxPool2d(2)] if pool else []),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    ]


class ResLayer(nn.Module):
    """X = Conv → MaxPool → BN → ReLU, R = (Conv → BN → ReLU) twice, applied to X; returns X + R.

    Shapes: ``(B, channels_in, H, W)`` → ``(B, channels_out, H/2, W/2)``.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.x = nn.Sequential(*conv_bn_relu(channels_in, channels_out, pool=True))
        self.res_block = nn.Sequential(
            *conv_bn_relu(channels_out, channels_out), *conv_bn_relu(channels_out, channels_out)
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.x(images)
        return x + self.res_block(x)


class CustomResNet(nn.Module):
    """The assigned network: 6,573,130 parameters, image ``(B, 3, 32, 32)`` → logits ``(B, 10)``.

    The assignment ends the network with a softmax. Cross-entropy already includes it, and a second
    one would keep the loss above 1.46, so the network returns logits.

    The inputs of the last layer, the maxima of 512 feature maps, are large: the loss of the
    untrained network is 3 to 5, where a uniform guess has ln 10 = 2.3, and a single step moves the
    logits far. Logits scaled by 1/8, as in cifar10-fast, start near the uniform guess and allow a
    higher learning rate.
    """

    LOGIT_SCALE = 0.125

    def __init__(self) -> None:
        super().__init__()
        self.prep_layer = nn.Sequential(*conv_bn_relu(3, 64))  # (B, 64, 32, 32)
        self.layer1 = ResLayer(64, 128)  # (B, 128, 16, 16)
        self.layer2 = nn.Sequential(*conv_bn_relu(128, 256, pool=True))  # (B, 256, 8, 8)
        self.layer3 = ResLayer(256, 512)  # (B, 512, 4, 4)
        self.max_pool = nn.MaxPool2d(4)  # (B, 512, 1, 1)
        self.fc = nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.prep_layer(images))))  # (B, 512, 4, 4)
        return self.LOGIT_SCALE * self.fc(self.max_pool(x).flatten(1))  # (B, 10)
