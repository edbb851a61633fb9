"""The hyperparameters of the sessions, and how they adapt to other data."""

from dataclasses import astuple, fields

from utils.recipes import SESSION7, SESSION8, SESSION9, Recipe


def test_recipes_are_those_of_the_published_runs():
    names = "session epochs top_epoch batch_size crop_padding cutout weight_decay max_grad_norm label_smoothing".split()
    assert [field.name for field in fields(Recipe)][:12] == [*names, "start_div", "end_div", "seed"]
    none = float("inf")
    assert astuple(SESSION7)[:12] == (7, 20, 5, 128, 4, 16, 5e-4, none, 0.1, 10, 10_000, 0)
    assert astuple(SESSION8)[:12] == (8, 24, 5, 512, 4, 8, 5e-4, none, 0.2, 100, 100, 0)
    assert astuple(SESSION9)[:12] == (9, 24, 5, 128, 1, 0, 3e-4, 1.0, 0, 10, 10_000, 0)


def test_compiled_are_those_that_gain():
    assert SESSION9.compile and SESSION7.compile and not SESSION8.compile and "compile" not in repr(SESSION9)


def test_recipes_adapt_to_the_numbers_of_images_processes_and_epochs():
    assert [SESSION9.for_images(count).batch_size for count in (50_000, 1437, 39, 3)] == [128, 71, 1, 1]  # 20 steps
    assert [SESSION9.for_processes(count).batch_size for count in (1, 3, 4, 200)] == [128, 126, 128, 200]
    recipes = [SESSION9.for_epochs(epochs) for epochs in (24, 72, 8, 1)]
    assert [(recipe.epochs, recipe.top_epoch) for recipe in recipes] == [(24, 5), (72, 15), (8, 2), (1, 1)]
