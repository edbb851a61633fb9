"""Session 9: ULTIMUS, three convolutions and four small attention blocks (EVA8 assignment, session 9)."""

import math

import torch
from torch import Tensor, nn

DIM = 48  # channels of the last convolution, and the width that every block reads and writes
HEAD = 8  # width of K, Q and V inside a block


def conv_bn_relu(channels_in: int, channels_out: int, dropout: float) -> list[nn.Module]:
    """3×3 convolution with padding 1 (the image keeps its size) → BatchNorm → ReLU → Dropout."""
    return [
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
    ]


class UltimusBlock(nn.Module):
    """Attention among the eight features of one image; no image sees another.

    K, Q and V are eight numbers an image. Row i of the attention matrix says how feature i of Q
    spreads over the features of K; V mixes those rows and ``fc_out`` leads back to 48.

    Shapes: X ``(B, 48)`` → ``(B, 48)``. There is no residual: what a block drops is gone.

    The assignment writes the scale outside the softmax, AM = softmax(QᵀK)/√8, and so do we.
    (In "Attention Is All You Need" it stands inside.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.fc_k = nn.Linear(DIM, HEAD)
        self.fc_q = nn.Linear(DIM, HEAD)
        self.fc_v = nn.Linear(DIM, HEAD)
        self.fc_out = nn.Linear(HEAD, DIM)

    def attention(self, x: Tensor) -> Tensor:
        """AM = softmax(QᵀK)/√8 of every image: X ``(B, 48)`` → ``(B, 8, 8)``; each row sums to 1/√8."""
        k, q = self.fc_k(x), self.fc_q(x)  # (B, 8) each
        scores = q[:, :, None] * k[:, None, :]  # (B, 8, 8): QᵀK of each image
        return torch.softmax(scores, dim=-1) / math.sqrt(HEAD)

    def forward(self, x: Tensor) -> Tensor:
        v = self.fc_v(x)  # (B, 8)
        z = torch.einsum("bi,bij->bj", v, self.attention(x))  # (B, 8): Z = V·AM
        return self.fc_out(z)  # (B, 48)


class TransformerModel(nn.Module):
    """The assigned network: 26,064 parameters, image ``(B, 3, 32, 32)`` → logits ``(B, 10)``.

    It returns logits: cross-entropy holds the softmax already.

    Args:
        a: side of the last feature map. 32 is the assignment's table; 8 pools by 2 after each of the
            first two convolutions, which costs a third of the time and no parameter.
        dropout: probability after each convolution. The default, 0, is what this small network
            wants: it underfits.
        init: ``"ours"`` starts the blocks so that the signal survives all four (see ``near_isometry``)
            and the first convolution from what images vary most along (see ``cosine_filters``). For
            comparison ``"near_isometry"`` does the first of the two only, ``"pytorch"`` neither.
    """

    def __init__(self, a: int = 32, dropout: float = 0.0, init: str = "ours") -> None:
        super().__init__()
        if a not in (32, 8):
            raise ValueError(f"a is {a!r}: it must be 32 (no pooling) or 8 (pooling after two convolutions)")
        pool = [nn.MaxPool2d(2)] if a == 8 else []
        self.conv_block = nn.Sequential(
            *conv_bn_relu(3, 16, dropout),  # (B, 16, 32, 32)
            *pool,  # a = 8: (B, 16, 16, 16)
            *conv_bn_relu(16, 32, dropout),  # (B, 32, 32, 32)
            *pool,  # a = 8: (B, 32, 8, 8)
            *conv_bn_relu(32, DIM, dropout),  # (B, 48, a, a)
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
        """What the blocks read: images ``(B, 3, 32, 32)`` → X ``(B, 48)``."""
        x = self.conv_block(images)  # (B, 48, a, a)
        return self.gap(x).flatten(1)  # (B, 48)

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)  # (B, 48)
        # Attention weights differ by a few percent, bfloat16 has three digits: from here on full
        # precision, which costs nothing on 48 numbers an image.
        with torch.autocast(x.device.type, enabled=False):
            x = self.ultimus_blocks(x.to(self.final_fc.weight.dtype))  # (B, 48)
            return self.final_fc(x)  # (B, 10)


@torch.no_grad()
def cosine_filters(conv: nn.Module) -> None:
    """Start the first convolution from what the 3×3 patches of natural images vary most along.

    On CIFAR-10 the eight strongest principal components of the patches are, to two digits, products of
    three cosines: one over the rows, one over the columns, one over the colours (mean, red − blue,
    red − 2 green + blue). They are the brightness, both colour differences, both slopes, the diagonal
    and both curvatures. Each is written with either sign, because ReLU keeps one half of it: 16 filters.
    A random start has to find these directions first.

    Source: the whitening layer of airbench, https://arxiv.org/abs/2404.00498
    """
    cosines = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])  # mean, slope, curvature of three numbers
    cosines /= cosines.norm(dim=1, keepdim=True)
    color, row, column = torch.tensor(
        [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 0, 0), (0, 1, 1), (0, 2, 0), (0, 0, 2)]
    ).T
    filters = torch.einsum("kc,ki,kj->kcij", cosines[color], cosines[row], cosines[column])  # (8, 3, 3, 3)
    conv.weight.copy_(0.3 * torch.cat([filters, -filters]))  # (16, 3, 3, 3)
    conv.bias.zero_()


@torch.no_grad()
def near_isometry(blocks: nn.Sequential) -> None:
    """Start the blocks so that each hands on what it was given, turned but neither flattened nor scaled.

    Why it is needed. PyTorch's default makes QᵀK small, so that every row of softmax(QᵀK) is nearly
    (1/8, …, 1/8). Then all eight entries of Z = V·AM are nearly one and the same number, and
    ``fc_out`` writes one direction of 48. After four blocks the images of a batch can no longer be
    told apart, and the network answers 10% right until some accident revives it.

    How it works. Let q = (1, 1, 1, 1, −1, −1, −1, −1) for every image, by the bias of ``fc_q``. For
    small k, row i of the softmax is softmax_j(±k_j) ≈ (1 ± (k_j − k̄))/8, with k̄ the mean of k. Let v
    have the same signs, by the bias of ``fc_v``: the constant parts of the rows cancel, because there
    are as many + as −, and the rest adds up to

        Z_j = Σ_i v_i AM_ij ≈ (k_j − k̄)/√8.

    So Z is k without its mean: seven of eight directions survive. ``fc_k`` reads eight orthonormal
    directions of X, ``fc_out`` writes eight orthonormal directions times √8, and the ``fc_k`` of the
    next block reads the very directions that were written. Small random weights on Q and V (0.3 of
    PyTorch's) let the images differ in their attention from the start.

    Only the product of q and k counts, so K is written three times as large and Q's biases a third as
    large: a step of Adam moves every weight by about the learning rate, whatever its size, and at
    0.02 that would be a seventh of K's entries, now a twentieth.
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
