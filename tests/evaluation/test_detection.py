import math

import pytest
import torch

from vgs_rl.agents.ebm.classical import OUTLIER_METHODS, OutlierConfig, OutlierDetector
from vgs_rl.evaluation.detection import (
    LabelledFeatures,
    auroc,
    detection_metrics,
    image_scores,
    mean_metrics,
    score_features,
    score_maps,
)


def labelled(x, labels, classes=None, masks=None):
    labels = torch.as_tensor(labels, dtype=torch.bool)
    names = classes or ("a",) * len(x)
    kinds = tuple("bad" if bad else "good" for bad in labels)
    return LabelledFeatures(x=x, labels=labels, classes=names, kinds=kinds, masks=masks)


def test_auroc_counts_pairs_in_the_right_order_and_ties_half():
    scores, labels = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([False, False, True, True])
    assert auroc(scores, labels) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert auroc(-scores, labels) == pytest.approx(1 - 3.5 / 4)
    assert auroc(torch.zeros(4), labels) == 0.5


def test_auroc_ranks_infinities_and_reports_nan():
    labels = torch.tensor([False, False, True])
    assert auroc(torch.tensor([-math.inf, 3.0, math.inf]), labels) == 1.0
    assert math.isnan(auroc(torch.tensor([0.0, math.nan, 1.0]), labels))


def test_auroc_refuses_what_has_no_curve():
    with pytest.raises(ValueError, match="labels must hold anomalies and normal data, got 0 of 2"):
        auroc(torch.zeros(2), torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"same shape, got \(2,\) and \(3,\)"):
        auroc(torch.zeros(2), torch.zeros(3, dtype=torch.bool))


def test_maps_are_bilinear_between_the_centres_of_positions():
    grid = torch.zeros(1, 14, 14)
    grid[0, 3, 5] = 1.0
    pixels = score_maps(grid, (224, 224))[0]
    # The centre of cell (3, 5) lies between the pixels 55, 56 and 87, 88, half a pixel off each.
    near = 1 - 0.5 / 16
    torch.testing.assert_close(pixels[55:57, 87:89], torch.full((2, 2), near**2))
    assert pixels[55, 87 + 8] == pytest.approx(near * (1 - 7.5 / 16))
    assert pixels.sum() == pytest.approx(256.0)
    assert pixels[:39].abs().max() == 0 and pixels[:, 105:].abs().max() == 0


def test_maps_reproduce_planes_inside_and_are_constant_outside():
    rows = torch.arange(14.0)[:, None].expand(14, 14)[None]
    pixels = score_maps(rows, (224, 224))[0]
    expected = ((torch.arange(224) + 0.5) / 16 - 0.5).clamp(0, 13)
    torch.testing.assert_close(pixels[:, 7], expected)
    with pytest.raises(ValueError, match="scores must be grids"):
        score_maps(torch.zeros(3), (4, 4))


def test_an_images_score_is_its_worst_position():
    grids = torch.arange(24.0).view(2, 3, 4)
    assert image_scores(grids).tolist() == [11.0, 23.0]
    assert image_scores(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]


def test_scores_do_not_depend_on_chunks():
    x = torch.randn(5, 3, 3, 2, generator=torch.Generator().manual_seed(0))
    whole = score_features(lambda z: z.sum(-1), x)
    assert whole.shape == (5, 3, 3)
    assert torch.equal(whole, score_features(lambda z: z.sum(-1), x, chunk=7))
    with pytest.raises(ValueError, match="score must return shape"):
        score_features(lambda z: z, x)


def test_metrics_are_means_over_classes():
    x = torch.tensor([0.0, 1.0, 1.0, 0.0])[:, None]
    data = labelled(x, [0, 1, 0, 1], ("a", "a", "b", "b"))
    metric = detection_metrics(lambda z: z[:, 0], data)["auroc_image"]
    assert metric.details["classes"] == {"a": 1.0, "b": 0.0}
    assert (metric.value, metric.ideal, metric.n) == (0.5, 1.0, 4)


def test_pixel_metrics_judge_the_upsampled_grid():
    x = torch.zeros(2, 14, 14, 1)
    x[1, 4:6, 4:6] = 1.0
    masks = torch.zeros(2, 28, 28, dtype=torch.bool)
    masks[1, 8:12, 8:12] = True
    metrics = detection_metrics(lambda z: z[:, 0], labelled(x, [0, 1], masks=masks))
    assert metrics["auroc_image"].value == 1.0
    assert metrics["auroc_pixel"].value == pytest.approx(1.0)
    moved = labelled(x, [0, 1], masks=masks.roll(14, 1))
    assert detection_metrics(lambda z: z[:, 0], moved)["auroc_pixel"].value < 0.5


def test_joined_metrics_name_every_class_once():
    x = torch.tensor([[0.0], [1.0]])
    each = [detection_metrics(lambda z: z[:, 0], labelled(x, [0, 1], (c, c))) for c in "ab"]
    metric = mean_metrics(each)["auroc_image"]
    assert metric.n == 4 and metric.details["classes"] == {"a": 1.0, "b": 1.0}
    assert metric.note == "mean of 2 classes, images"
    with pytest.raises(ValueError, match="class 'a' is evaluated twice"):
        mean_metrics([each[0], each[0]])


def test_labelled_features_are_checked_by_name():
    with pytest.raises(ValueError, match="x must be floating"):
        labelled(torch.zeros(2, 3, dtype=torch.int64), [0, 1])
    with pytest.raises(ValueError, match="masks must be bool, of 3 dimensions and 2 rows"):
        labelled(torch.zeros(2, 3), [0, 1], masks=torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="classes must have 2 entries"):
        labelled(torch.zeros(2, 3), [0, 1], ("a",))


def test_selected_rows_keep_everything_together():
    data = labelled(torch.arange(6.0).view(3, 2), [0, 1, 0], ("a", "b", "a"))
    chosen = data.select(data.labels)
    assert chosen.x.tolist() == [[2.0, 3.0]] and chosen.classes == ("b",)
    assert chosen.kinds == ("bad",) and len(data.select(torch.tensor([2, 0]))) == 2


@pytest.mark.parametrize("method", OUTLIER_METHODS)
def test_detectors_rank_far_points_above_near_ones(method):
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(300, 4, generator=generator)
    near = torch.randn(100, 4, generator=generator)
    far = near / near.norm(dim=1, keepdim=True) * 8
    detector = OutlierDetector(method, train)
    scores = detector(torch.cat([near, far]))
    assert scores.shape == (200,) and scores.dtype == torch.float32
    assert auroc(scores, torch.arange(200) >= 100) > 0.99
    assert torch.equal(scores[:100], OutlierDetector(method, train)(near))


def test_detectors_fit_on_a_subsample_of_positions():
    grids = torch.randn(10, 5, 5, 3, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    detector = OutlierDetector("nearest_neighbour", grids, OutlierConfig(max_rows=40))
    assert detector.rows == 40
    assert int((detector(grids.view(-1, 3)) == 0).sum()) == 40
    assert torch.equal(before, torch.get_rng_state())


def test_mahalanobis_is_the_whitened_squared_distance():
    train = torch.randn(50_000, 2, generator=torch.Generator().manual_seed(0))
    train = train * torch.tensor([1.0, 3.0])
    config = OutlierConfig(max_rows=50_000, shrinkage=1e-6)
    score = OutlierDetector("mahalanobis", train, config)(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    assert score.tolist() == pytest.approx([4.0, 1.0], rel=0.05)


def test_detectors_refuse_bad_arguments_by_name():
    with pytest.raises(ValueError, match="method must be one of isolation_forest, .*got 'svm'"):
        OutlierDetector("svm", torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"train must have shape .*got \(1, 2\)"):
        OutlierDetector("mahalanobis", torch.zeros(1, 2))
    with pytest.raises(ValueError, match="outliers.nu must be at most 1, got 2"):
        OutlierConfig(nu=2)
