"""What a server sees of its clients' images: gradients inverted, without protection, clipped, and clipped with noise.

Each client sends the gradient of one image, and the attacker knows the model and the label. Of a network that begins with a
linear layer he reads the image off (Phong et al. 2018); of a convolutional one he searches for an image whose gradient
points the same way (Geiping et al. 2020). The protection is the chain that a simulation would use, with a cohort of one
client, the worst case. Clipping changes a gradient's length alone, and neither attack needs that: it is the noise that protects.

    python examples/gradient_inversion.py --picture gradient_inversion.png
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim.privacy import audits

SIDE = 14
CLIP = agg.clip_by_global_norm(1.0)
MEAN = agg.mean(over="expected_cohort")
PROTECTIONS = {
    "no protection": agg.identity(),
    "clipped to norm 1": CLIP,
    "clipped, noise 0.01": agg.chain(CLIP, MEAN, agg.gaussian_noise(0.01)),
    "clipped, noise 0.1": agg.chain(CLIP, MEAN, agg.gaussian_noise(0.1)),
}
"""Noise as a multiple of the clip norm. The stronger one still costs an epsilon of more than 50 in a single round."""


def secrets(count: int) -> tuple[jax.Array, jax.Array]:
    """Images ``f32[count, 14, 14, 1]`` in [0, 1] of different characters, and their labels."""
    data = fs.data.glyphs(clients=1, classes=47, seed=3).train.client(0)
    labels, first = np.unique(data["y"], return_index=True)
    chosen = np.random.default_rng(0).permutation(len(first))[:count]
    images = data["x"][first[chosen]].reshape(count, SIDE, 2, SIDE, 2, 1).mean(axis=(2, 4)) / 255
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels[chosen], jnp.int32)


def clients_gradients(task: fs.Task, variables: fs.Variables, labels: jax.Array):
    """Images ``[clients, ...]`` to gradients ``[clients, ...]``, one image for each client, all of length 1."""

    def of_one(image, label):
        gradient = audits.loss_gradient(task, variables, {"x": image[None], "y": label[None]})
        length = optax.global_norm(gradient) + 1e-12
        return jax.tree.map(lambda x: x / length, gradient)

    return lambda images: jax.vmap(of_one)(images, labels)


def released(protection: fs.Transform, gradients, key: jax.Array):
    """What the server sees of each client, ``[clients, ...]``."""
    longer = jax.tree.map(lambda x: 3 * x, gradients)  # so that there is something to clip
    one = lambda update, k: agg.run(protection, jax.tree.map(lambda x: x[None], update), key=k)[0]  # noqa: E731
    keys = jax.random.split(key, len(jax.tree.leaves(gradients)[0]))
    seen = [one(jax.tree.map(lambda x, i=i: x[i], longer), k) for i, k in enumerate(keys)]
    return jax.tree.map(lambda *x: jnp.stack(x), *seen)


def read_off(seen, images: jax.Array) -> np.ndarray:
    """The first layer's inputs."""
    layer = seen["Dense_0"]
    found = [audits.invert_linear(*pair) for pair in zip(layer["kernel"], layer["bias"], strict=True)]
    return np.clip(np.stack(found).reshape(images.shape), 0, 1)


def attacks(images: jax.Array, labels: jax.Array, steps: int) -> dict[str, dict[str, np.ndarray]]:
    """Images that each attack recovers behind each protection."""
    found: dict[str, dict[str, np.ndarray]] = {}
    models = {
        "read off the first, linear layer": fs.models.mlp(classes=47, hidden=(100,)),
        "searched for, convolutional network": fs.models.cnn(classes=47),
    }
    for attack, model in models.items():
        task = fs.tasks.classification(model, sample_input=images[:1])
        gradient = clients_gradients(task, task.init(jax.random.key(1)), labels)
        found[attack] = {}
        for number, (name, protection) in enumerate(PROTECTIONS.items()):
            seen = released(protection, gradient(images), jax.random.fold_in(jax.random.key(2), number))
            if attack.startswith("read"):
                found[attack][name] = read_off(seen, images)
            else:
                found[attack][name] = audits.invert_gradients(
                    gradient, seen, images.shape, steps=steps, total_variation=3e-3
                ).images
    return found


def picture(images: np.ndarray, found: dict[str, dict[str, np.ndarray]]) -> Figure:
    """A row of originals, and below them a row for each protection; a block of columns for each attack."""
    count, rows = len(images), ["original", *PROTECTIONS]
    blocks = len(found)
    # A narrow column between two blocks stays empty.
    columns, widths = blocks * (count + 1) - 1, ([1.0] * count + [0.25]) * blocks
    figure = Figure(figsize=(0.95 * blocks * count + 1.7, 1.12 * len(rows) + 0.3), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 0.995, 0.95), w_pad=0.02, h_pad=0.02)  # room for the titles
    axes = figure.subplots(len(rows), columns, squeeze=False, width_ratios=widths[:-1])
    for place, (attack, recovered) in enumerate(found.items()):
        begin = place * (count + 1)
        # No title, and not in the layout: the first column would become as wide as the words.
        words = axes[0, begin].annotate(
            attack, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", fontsize=11
        )
        words.set_in_layout(False)
        for row, name in enumerate(rows):
            for column in range(count):
                shown = images[column] if row == 0 else recovered[name][column]
                ax = axes[row, begin + column]
                ax.imshow(shown[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                value = audits.psnr(shown, images[column])
                caption = "" if row == 0 else "exact" if value > 99 else f"{value:.1f} dB"
                ax.set_xlabel(caption, fontsize=8, labelpad=2)
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for row, name in enumerate(rows):
        axes[row, 0].set_ylabel(name.replace(", ", ",\n"), rotation=0, ha="right", va="center", fontsize=9)
    for row in range(len(rows)):
        for gap in range(count, columns, count + 1):
            axes[row, gap].set_axis_off()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000, help="of the search")
    parser.add_argument("--picture", help="where the picture goes")
    options = parser.parse_args()

    images, labels = secrets(options.clients)
    found = attacks(images, labels, options.steps)
    print(f"peak signal-to-noise ratio over {len(images)} images, mean")
    for attack, recovered in found.items():
        for name, shown in recovered.items():
            values = [min(audits.psnr(a, b), 99.0) for a, b in zip(shown, images, strict=True)]
            print(f"{attack:<38}{name:<24}{np.mean(values):6.1f} dB")
    if options.picture:
        picture(np.asarray(images), found).savefig(options.picture, dpi=150)


if __name__ == "__main__":
    main()
