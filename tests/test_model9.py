"""Session 9's network: the assignment's parameter count, its attention, and the signal that must survive it."""

import math

import pytest
import torch
from torch.nn import functional as F
from torchinfo import summary

from models.model7 import ResNet18
from models.model8 import CustomResNet
from models.model9 import TransformerModel, UltimusBlock
from utils.data import load_data
from utils.explain import model_table
from utils.transforms import Normalize


def test_parameters_and_mult_adds_are_the_assignments():
    statistics = summary(TransformerModel(), input_size=(20, 3, 32, 32), verbose=0)
    assert statistics.total_params == statistics.trainable_params == 26_064
    assert f"{statistics.total_mult_adds / 1e6:.2f}" == "388.44"


@pytest.mark.parametrize("network", [ResNet18, CustomResNet, TransformerModel])
def test_table_of_layers_fits_on_a_page(network):
    table = model_table(network())
    for column in ("Kernel Shape", "Output Shape", "Param #", "Mult-Adds"):
        assert column in table
    assert max(map(len, table.splitlines())) <= 110
    assert "Units." not in table


def test_table_of_layers_counts_parameters_and_operations():
    table = model_table(TransformerModel())
    assert "(var_name)" in table and "fc_k" in table
    assert "Total params: 26,064" in table and "Total mult-adds (M): 388.44" in table


def test_shapes_through_every_stage():
    model, images = TransformerModel(), torch.rand(5, 3, 32, 32)
    features = model.conv_block(images)
    assert features.shape == (5, 48, 32, 32)
    x = model.gap(features).flatten(1)
    assert x.shape == (5, 48)
    for block in model.ultimus_blocks:
        assert block.attention(x).shape == (5, 8, 8)
        assert [layer(x).shape for layer in (block.fc_k, block.fc_q, block.fc_v)] == [(5, 8)] * 3
        x = block(x)
        assert x.shape == (5, 48)
    assert model.final_fc(x).shape == model(images).shape == (5, 10)
    assert len(model.ultimus_blocks) == 4 and model.final_fc.bias is None


def test_a_8_pools_and_has_the_same_parameters():
    model = TransformerModel(a=8)
    assert model.conv_block(torch.rand(2, 3, 32, 32)).shape == (2, 48, 8, 8)
    assert sum(parameter.numel() for parameter in model.parameters()) == 26_064
    with pytest.raises(ValueError, match=r"a is 16: it must be 32 .* or 8"):
        TransformerModel(a=16)


def test_blocks_compute_in_full_precision_under_autocast():
    model, seen = TransformerModel(), []
    model.ultimus_blocks[3].register_forward_hook(lambda _block, _inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.rand(2, 3, 32, 32))
    assert seen == [torch.float32] and logits.dtype == torch.float32


def test_dropout_follows_every_convolution():
    model = TransformerModel(dropout=0.3)
    assert [layer.p for layer in model.conv_block if isinstance(layer, torch.nn.Dropout)] == [0.3] * 3


@torch.no_grad()
def test_block_equals_a_plain_loop_over_images():
    torch.manual_seed(0)
    block, x = UltimusBlock().double(), torch.randn(6, 48, dtype=torch.float64)
    expected = torch.empty(6, 48, dtype=torch.float64)
    for n in range(6):
        k, q, v = ([sum(w * e for w, e in zip(row, x[n])) + b for row, b in zip(layer.weight, layer.bias)]
                   for layer in (block.fc_k, block.fc_q, block.fc_v))  # fmt: skip
        am = []  # row i: softmax over j of q_i k_j, divided by √8
        for i in range(8):
            powers = [math.exp(q[i] * k[j]) for j in range(8)]
            am.append([power / sum(powers) / math.sqrt(8) for power in powers])
        z = [sum(v[i] * am[i][j] for i in range(8)) for j in range(8)]
        for row in range(48):
            expected[n, row] = sum(block.fc_out.weight[row, j] * z[j] for j in range(8)) + block.fc_out.bias[row]
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


def test_attention_rows_sum_to_one_over_root_eight():
    block = UltimusBlock()
    sums = block.attention(torch.randn(4, 48)).sum(dim=-1)
    torch.testing.assert_close(sums, torch.full((4, 8), 1 / math.sqrt(8)))


def test_an_images_logits_do_not_depend_on_its_neighbors():
    torch.manual_seed(0)
    model = TransformerModel().double().eval()
    image, others = torch.rand(1, 3, 32, 32).double(), torch.rand(2, 7, 3, 32, 32).double()
    first, second = (model(torch.cat([image, other]))[0] for other in others)
    torch.testing.assert_close(first, model(image)[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)


def effective_rank(x: torch.Tensor) -> int:
    """Number of singular values, with the mean removed, that are at least a twentieth of the largest."""
    values = torch.linalg.svdvals(x - x.mean(dim=0))
    return int((values > values[0] / 20).sum()) if values[0] > 1e-3 else 0


@pytest.mark.parametrize("seed", range(10))
def test_signal_survives_the_four_blocks(seed):
    torch.manual_seed(seed)
    x = torch.randn(512, 48)
    with torch.no_grad():
        assert effective_rank(TransformerModel().ultimus_blocks(x)) >= 6
        assert effective_rank(TransformerModel(init="pytorch").ultimus_blocks(x)) <= 1


def test_gradients_reach_the_first_convolution():
    torch.manual_seed(0)
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    norms = {}
    for init in ("ours", "pytorch"):
        model = TransformerModel(init=init)
        F.cross_entropy(model(images), labels).backward()
        norms[init] = model.conv_block[0].weight.grad.norm().item()
    assert norms["ours"] > 100 * norms["pytorch"]


def test_first_convolution_starts_from_orthogonal_filters_of_either_sign():
    weight = TransformerModel().conv_block[0].weight.detach().flatten(1)  # (16, 27)
    torch.testing.assert_close(weight[:8] @ weight[:8].T, 0.09 * torch.eye(8))
    assert torch.equal(weight[8:], -weight[:8])


def test_cosine_filters_are_the_strongest_principal_components_of_smooth_images():
    """Blurred gray noise stands in for images: its patches vary most in brightness, the slopes and the diagonal."""
    torch.manual_seed(0)
    blur = torch.tensor([1.0, 4, 6, 4, 1])
    kernel = (blur[:, None] * blur)[None, None] / 256
    images = F.conv2d(F.conv2d(torch.randn(64, 1, 32, 32), kernel), kernel)
    patches = F.unfold(images, 3).transpose(1, 2).reshape(-1, 9)  # (N, 9)
    strongest = torch.linalg.eigh(patches.T @ patches).eigenvectors.flip(1).T[:4]
    gray = TransformerModel().conv_block[0].weight.detach()[[0, 2, 3, 5]].sum(dim=1).flatten(1)  # (4, 9)
    found = (F.normalize(gray) @ strongest.T).square()
    assert found[0, 0] > 0.99 and found[3, 3] > 0.9  # brightness, diagonal
    assert found[1:3, 1:3].sum() > 1.9  # the slopes, in either order


def test_unknown_initialization_is_rejected():
    with pytest.raises(ValueError, match=r"init is 'xavier'.*\"ours\", \"near_isometry\" or \"pytorch\""):
        TransformerModel(init="xavier")


@pytest.mark.parametrize("a, seed", [*((8, seed) for seed in range(10)), (32, 0)])
def test_better_than_chance_after_sixty_steps_on_digits(a, seed):
    assert accuracy_of_first_steps("ours", a, seed) > 16  # chance is 10 ± 1.4


def test_pytorchs_initialisation_is_still_at_chance_by_then():
    assert accuracy_of_first_steps("pytorch", a=32, seed=0) < 16


def accuracy_of_first_steps(init: str, a: int, seed: int) -> float:
    """Training accuracy in percent over steps 41 to 60 on the digits."""
    digits = load_data("digits")
    normalize = Normalize(digits.mean, digits.std)
    torch.manual_seed(seed)
    model, hits = TransformerModel(a, init=init).to(memory_format=torch.channels_last), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(60):
        batch = torch.randint(len(digits.train_labels), (24,))
        logits, labels = model(normalize(digits.train_images[batch])), digits.train_labels[batch]
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
        hits.append((logits.argmax(dim=1) == labels).float().mean())
    return 100 * torch.stack(hits[40:]).mean().item()
