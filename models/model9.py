"""Session 9 of EVA8: ULTIMUS, three convolutions and four small attention blocks."""

import math

import torch
from torch import Tensor, nn

DIM = 48  # channels of the last convolution, and input and output width of every block
HEAD = 8  # width of K, Q and V inside a block


def conv_bn_relu(channels_in: int, channels_out: int) -> list[nn.Module]:
    """3×3 convolution with padding 1 (same size) → BatchNorm → ReLU → Dropout(0).

    The network underfits, so nothing is dropped. The layer stays: it takes an index in the
    Sequential, and the names of the published weights contain these indices.
    """
    return [
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
        nn.Dropout(0.0),
    ]


class UltimusBlock(nn.Module):
    """Attention among the eight features of one image. Images do not attend to each other.

    K, Q and V have eight features per image. Row i of the attention matrix is how feature i of Q
    distributes its attention over the features of K. V weights those rows, and ``fc_out`` maps
    their sum back to 48 features.

    Shapes: X ``(B, 48)`` → ``(B, 48)``. There is no residual connection: what a block drops is
    gone.

    As in the assignment, the scale is outside the softmax: AM = softmax(QᵀK)/√8. (In "Attention Is
    All You Need" it is inside.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.fc_k = nn.Linear(DIM, HEAD)
        self.fc_q = nn.Linear(DIM, HEAD)
        self.fc_v = nn.Linear(DIM, HEAD)
        self.fc_out = nn.Linear(HEAD, DIM)

    def attention(self, x: Tensor) -> Tensor:
        """AM = softmax(QᵀK)/√8 of each image: X ``(B, 48)`` → ``(B, 8, 8)``."""
        k, q = self.fc_k(x), self.fc_q(x)  # (B, 8) each
        scores = q[:, :, None] * k[:, None, :]  # (B, 8, 8): QᵀK for each image
        return torch.softmax(scores, dim=-1) / math.sqrt(HEAD)

    def forward(self, x: Tensor) -> Tensor:
        v = self.fc_v(x)  # (B, 8)
        z = torch.einsum("bi,bij->bj", v, self.attention(x))  # (B, 8): Z = V·AM
        return self.fc_out(z)  # (B, 48)


class TransformerModel(nn.Module):
    """The assigned network: 26,064 parameters, image ``(B, 3, 32, 32)`` → logits ``(B, 10)``.

    It returns logits, because cross-entropy already includes the softmax.

    Args:
        a: side of the last feature map in pixels. The assignment leaves it open; 32 is its example.
            8 adds max pooling by 2 after each of the first two convolutions: the same parameters,
            in a fifth of the time.
        init: ``"ours"`` initializes the blocks with ``near_isometry`` and the first convolution
            with ``cosine_filters``. For comparison, ``"near_isometry"`` does only the former and
            ``"pytorch"`` neither.
    """

    def __init__(self, a: int = 32, init: str = "ours") -> None:
        super().__init__()
        if a not in (32, 8):
            raise ValueError(
                f"a is {a!r}: it must be 32 (no pooling) or 8 (pooling after two convolutions)"
            )
        pool = [nn.MaxPool2d(2)] if a == 8 else []
        self.conv_block = nn.Sequential(
            *conv_bn_relu(3, 16),  # (B, 16, 32, 32)
            *pool,  # a = 8: (B, 16, 16, 16)
            *conv_bn_relu(16, 32),  # (B, 32, 32, 32)
            *pool,  # a = 8: (B, 32, 8, 8)
            *conv_bn_relu(32, DIM),  # (B, 48, a, a)
        )
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.ultimus_blocks = nn.Sequential(*(UltimusBlock() for _ in range(4)))
        self.final_fc = nn.Linear(DIM, 10, bias=False)
        if init not in ("ours", "near_isometry", "pytorch"):
            raise ValueError(f'init is {init!r}: it must be "ours", "near_isometry" or "pytorch"')
        if init != "pytorch":
            near_isometry(self.ultimus_blocks)
        if init == "ours":
            cosine_filters(self.conv_block[0])

    def features(self, images: Tensor) -> Tensor:
        """The input of the blocks: images ``(B, 3, 32, 32)`` → X ``(B, 48)``."""
        x = self.conv_block(images)  # (B, 48, a, a)
        return self.gap(x).flatten(1)  # (B, 48)

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)  # (B, 48)
        # Attention weights differ by a few percent, and bfloat16 would round each by up to 0.4%.
        # Full precision from here on costs nothing, with 48 features per image.
        with torch.autocast(x.device.type, enabled=False):
            x = self.ultimus_blocks(x.to(self.final_fc.weight.dtype))  # (B, 48)
            return self.final_fc(x)  # (B, 10)


@torch.no_grad()
def cosine_filters(conv: nn.Module) -> None:
    """Initialize the first convolution with the directions along which image patches vary most.

    On CIFAR-10, the eight leading principal components of the 3×3 patches are close to products of
    three cosines: one over the rows, one over the columns and one over the colors (mean, red −
    blue, red − 2 green + blue). They are the brightness, both color differences, both slopes, the
    diagonal and both curvatures. Each of them is used with both signs, because ReLU keeps only one
    half: 16 filters. Random filters would have to learn these directions first.

    Source: the whitening layer of airbench, https://arxiv.org/abs/2404.00498
    """
    # Mean, slope and curvature over three points.
    cosines = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    cosines /= cosines.norm(dim=1, keepdim=True)
    color, row, column = torch.tensor(
        [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 0, 0), (0, 1, 1), (0, 2, 0), (0, 0, 2)]
    ).T
    products = (cosines[color], cosines[row], cosines[column])
    filters = torch.einsum("kc,ki,kj->kcij", *products)  # (8, 3, 3, 3)
    conv.weight.copy_(0.3 * torch.cat([filters, -filters]))  # (16, 3, 3, 3)
    conv.bias.zero_()


@torch.no_grad()
def near_isometry(blocks: nn.Sequential) -> None:
    """Initialize the blocks so that each passes seven directions of its input on unattenuated.

    Why this is needed. With PyTorch's default initialization, QᵀK is small, so every row of
    softmax(QᵀK) is close to (1/8, …, 1/8). Then all eight entries of Z = V·AM are nearly equal, and
    ``fc_out`` can only write one of 48 directions. After four blocks, all images of a batch look
    the same, and the accuracy stays at 10% for a long time.

    How it works. ``fc_k`` reads eight orthonormal directions of X, r = (r_1, …, r_8), and makes
    k = 3r. The bias of ``fc_q`` makes q = (1, 1, 1, 1, −1, −1, −1, −1)/3 for every image. So row i
    of the softmax is softmax_j(±r_j) ≈ (1 ± (r_j − r̄))/8 for small r, where r̄ is the mean of r.
    The bias of ``fc_v`` makes v = (1, 1, 1, 1, −1, −1, −1, −1). The constant parts of the rows
    cancel, because there are as many + as −, and the rest adds up to

        Z_j = Σ_i v_i AM_ij ≈ (r_j − r̄)/√8.

    Z is r without its mean: seven of the eight directions survive. ``fc_out`` writes eight
    orthonormal directions times √8, and the ``fc_k`` of the next block reads exactly those. Small
    random weights in Q and V (0.3 times PyTorch's) let the attention differ between images from
    the start.

    Why 3 and 1/3. Only the product of q and k matters. Adam changes every weight by about the
    learning rate in a step, so a step rotates the directions of larger weights by less.
    """
    signs = torch.tensor([1.0] * (HEAD // 2) + [-1.0] * (HEAD // 2))
    read = nn.init.orthogonal_(torch.empty(HEAD, DIM))  # orthonormal rows
    for block in blocks:
        for linear, size in ((block.fc_q, 1 / 3), (block.fc_v, 1)):
            linear.weight.mul_(0.3)
            linear.bias.copy_(size * signs)
        block.fc_k.weight.copy_(3 * read)
        block.fc_k.bias.zero_()
        write = nn.init.orthogonal_(torch.empty(DIM, HEAD))  # orthonormal columns
        block.fc_out.weight.copy_(math.sqrt(HEAD) * write)
        block.fc_out.bias.zero_()
        read = write.T
