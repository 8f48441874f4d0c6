"""The coupling flow: a conditional density made of affine maps whose coefficients transformers give.

    u_i = E_i(c) (y_i − c_i) / unit          displacements in the axes E_i of each bead of the condition
    κ(y, a | c): (u, a) = f(z; c), z ~ N(0, e^{2s}),  a ~ N(0, 1) fitted along, as in a real NVP
    even layers  u ← u exp(S(a; c)) + T(a; c),     odd layers  a ← a exp(S(u; c)) + T(u; c)
    log κ = log N(z; 0, e^{2s}) − Σ_layers Σ S − 3n log unit

(Dinh et al., arXiv 1605.08803; conditional, with auxiliary variables and kernel attention: Klein et al., Timewarp,
arXiv 2302.01170; as a kernel of coarse-grained forces: Klein et al., arXiv 2506.19628, app.) S and T are transformers
with kernel attention at the condition; T has a linear part beside it, because stiff molecules are nearly Gaussian in
these coordinates.

What holds exactly: κ(Qy + t | Qc + t) = κ(y | c) for every rotation Q and shift t, and draws of one key turn along.
Mirror images are told apart. No rotations need to be shown in fitting.

The auxiliary a is one more variable that is integrated out: E[∇_y log κ(y, a | c) | y, c] = ∇_y log κ(y | c) where a is
drawn from κ(a | y, c), since the gradient of log κ(a | y, c) has zero mean. So the gradient of the joint density at
the a that was drawn is an unbiased label. For draws this is exact. At given positions a is drawn from N(0, 1), which is
what κ(a | y, c) is fitted to. ``log_density`` is log κ(y, a | c) − log N(a; 0, 1), whose mean over N(a) is below
log κ(y | c) by what a and y have in common (the evidence bound), and equal to it where they have nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hpc_cg.errors import UnknownBeads
from hpc_cg.kernels.attention import ALANINE_LENGTH_SCALES_NM, Transformer, kernel_weights
from hpc_cg.kernels.axes import local_axes, stiff_triangles
from hpc_cg.kernels.density import ConditionalDensity, Draw, finite, normals
from hpc_cg.randomness import stream

LARGEST_LOG_SCALE = 2.0
"""Of one layer and, twice that, of the base: scales lie between e^−2 and e^2, and no product of layers overflows."""

ROWS = 512
"""Beads times frames that are worked on at a time in draws."""

LOOKED_AT = 2000
"""Frames at most from which triangles, the unit of length and the spread of the features are taken."""


@dataclass(frozen=True)
class CouplingConfig:
    """Shape of the flow. The small one that is the default fits alanine dipeptide in minutes on one core.

    n_layers            coupling layers: displacements and auxiliaries in turn
    n_blocks            blocks of kernel attention in each transformer
    width               features of a bead in the blocks
    hidden              of the perceptrons before and after them
    feedforward         hidden width in the blocks
    embedding           features that tell beads apart
    length_scales_nm    one head each
    """

    n_layers: int = 4
    n_blocks: int = 1
    width: int = 32
    hidden: int = 64
    feedforward: int = 64
    embedding: int = 8
    length_scales_nm: tuple[float, ...] = ALANINE_LENGTH_SCALES_NM


PUBLISHED = CouplingConfig(8, 3, 128, 256, 2048, 32, ALANINE_LENGTH_SCALES_NM)
"""The size published for alanine dipeptide and chignolin (arXiv 2506.19628)."""


class Context(NamedTuple):
    """What the layers see of the condition.

    axes       rows e1, e2, e3 on every bead
    weights    of kernel attention
    features   where the others are, in the axes of each bead, and how far: in units of their spread
    """

    axes: Float[Tensor, "frame bead 3 3"]
    weights: Float[Tensor, "frame receiver_and_head bead"]
    features: Float[Tensor, "frame bead feature"]


class Coefficients(NamedTuple):
    """Of an affine map of vectors on the beads."""

    log_scale: Float[Tensor, "frame bead 3"]
    shift: Float[Tensor, "frame bead 3"]


class CouplingLayer(nn.Module):
    """The coefficients by which one half of the variables is moved, given the other half and the condition."""

    def __init__(self, n_beads: int, config: CouplingConfig):
        super().__init__()
        n_seen = 7 * n_beads
        n_in = config.embedding + n_seen
        shape = (config.width, config.hidden, config.feedforward, config.n_blocks, len(config.length_scales_nm))
        self.scale, self.shift = Transformer(n_in, 3, *shape), Transformer(n_in, 3, *shape)
        self.linear = nn.Parameter(torch.zeros(n_beads, n_seen, 3))

    def forward(
        self, given: Float[Tensor, "frame bead 3"], context: Context, embedding: Float[Tensor, "bead feature"]
    ) -> Coefficients:
        """At the vectors ``given``, in the axes of their beads."""
        seen = torch.cat((context.features, in_all_axes(given, context.axes)), -1)
        features = torch.cat((embedding.expand(len(seen), -1, -1), seen), -1)
        log_scale = LARGEST_LOG_SCALE * torch.tanh(self.scale(features, context.weights) / LARGEST_LOG_SCALE)
        linear = torch.bmm(seen.transpose(0, 1), self.linear).transpose(0, 1)
        return Coefficients(log_scale, self.shift(features, context.weights) + linear)


def in_all_axes(
    vectors: Float[Tensor, "frame bead 3"], axes: Float[Tensor, "frame bead 3 3"]
) -> Float[Tensor, "frame bead feature"]:
    """Vectors told in the axes of their own beads, told to each bead in its axes: features (3, bead)."""
    fixed = (vectors[:, :, None] @ axes)[:, :, 0]
    return (axes.flatten(1, 2) @ fixed.transpose(1, 2)).unflatten(1, (-1, 3)).flatten(2)


class CouplingFlow(ConditionalDensity):
    """The flow of one molecule.

    unit_nm     a displacement of this length is 1 in the flow
    triangles   partners of each bead whose axes it has
    seed        of the first weights

    Raises UnknownBeads where the triangles name beads that there are not, and for frames of another number of beads.
    """

    centred = False

    triangles: Tensor
    length_scales: Tensor
    feature_mean: Tensor
    feature_spread: Tensor

    def __init__(
        self, n_beads: int, triangles: Sequence[Sequence[int]], unit_nm: float, config: CouplingConfig, seed: int
    ):
        super().__init__()
        _refuse_other_triangles(n_beads, triangles)
        self.n_beads, self.unit_nm, self.config, self.seed = n_beads, unit_nm, config, seed
        self.register_buffer("triangles", torch.tensor(triangles), persistent=False)
        self.register_buffer("length_scales", torch.tensor(config.length_scales_nm), persistent=False)
        self.register_buffer("feature_mean", torch.zeros(n_beads, 4 * n_beads))
        self.register_buffer("feature_spread", torch.ones(n_beads, 4 * n_beads))
        self.embedding = nn.Parameter(torch.zeros(n_beads, config.embedding))
        self.base = nn.Parameter(torch.zeros(2, n_beads, 3))
        layers = [CouplingLayer(n_beads, config) for _ in range(config.n_layers)]
        self.layers = cast("Sequence[CouplingLayer]", nn.ModuleList(layers))
        self._initialise(seed)

    @classmethod
    def of(
        cls,
        target: Float[Tensor, "frame bead 3"],
        condition: Float[Tensor, "frame bead 3"],
        config: CouplingConfig,
        seed: int,
    ) -> "CouplingFlow":
        """A flow to be fitted to pairs like these: its axes, unit and features fit them; it begins as N(c, unit²)."""
        stride = max(1, len(target) // LOOKED_AT)
        target, condition = target[::stride], condition[::stride]
        triangles = stiff_triangles(condition.double().cpu().numpy()).tolist()
        unit_nm = float((target - condition).double().square().mean().sqrt())
        flow = cls(condition.shape[1], triangles, unit_nm, config, seed).to(condition.device)
        features = flow._features(condition.double(), local_axes(condition.double(), flow.triangles))
        flow.feature_mean.copy_(features.mean(0))
        flow.feature_spread.copy_(features.std(0).clamp_min(0.1 * unit_nm))
        return flow

    def loss(
        self,
        target: Float[Tensor, "frame bead 3"],
        condition: Float[Tensor, "frame bead 3"],
        key: np.random.Generator,
    ) -> Float[Tensor, "frame"]:
        """−log κ(y, a | c) for each bead; a is drawn with ``key``."""
        self._refuse_other_beads(target, condition)
        return -self._joint(target, normals(key, target), condition) / self.n_beads

    def draw(self, condition: Float[Tensor, "frame bead 3"], key: np.random.Generator) -> Draw:
        """One draw for each frame, its scores gathered on the way from z to y.

        Each layer is evaluated once and differentiated once: the walk that makes y passes the layers in the order in
        which the gradient of log κ has to come back through them. A frame of six beads takes some 0.2 ms of one core,
        and 10 ms at the published size (benchmarks/bench_coupling.py).
        """
        self._refuse_other_beads(condition)
        frames = condition.new_empty(len(condition), 2, self.n_beads, 3)
        return self._in_tiles(self._draw, normals(key, frames), condition)

    def at(
        self,
        positions: Float[Tensor, "frame bead 3"],
        condition: Float[Tensor, "frame bead 3"],
        key: np.random.Generator,
    ) -> Draw:
        """At given positions, with auxiliaries drawn from N(0, 1) by ``key``."""
        self._refuse_other_beads(positions, condition)
        return self._in_tiles(self._at, torch.stack((positions, normals(key, positions)), 1), condition)

    def describe(self) -> dict[str, Any]:
        """Beads, triangles, unit, shape and seed."""
        return {
            "n_beads": self.n_beads,
            "triangles": self.triangles.tolist(),
            "unit_nm": self.unit_nm,
            "config": asdict(self.config),
            "seed": self.seed,
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "CouplingFlow":
        """A flow of that description. Raises UnknownBeads where its parts are of different molecules."""
        shape = dict(description["config"])
        config = CouplingConfig(**{**shape, "length_scales_nm": tuple(shape["length_scales_nm"])})
        unit_nm, seed = description["unit_nm"], description["seed"]
        return cls(description["n_beads"], description["triangles"], unit_nm, config, seed)

    def context(self, condition: Float[Tensor, "frame bead 3"]) -> Context:
        """What the layers see of the condition."""
        axes = local_axes(condition, self.triangles)
        features = (self._features(condition, axes) - self.feature_mean) / self.feature_spread
        return Context(axes, kernel_weights(condition, self.length_scales), features)

    def local(
        self, positions: Float[Tensor, "frame bead 3"], condition: Float[Tensor, "frame bead 3"], context: Context
    ) -> Float[Tensor, "frame bead 3"]:
        """Displacements from the condition, in its axes and units."""
        return (context.axes @ (positions - condition)[..., None])[..., 0] / self.unit_nm

    def to_base(
        self, moved: Float[Tensor, "frame bead 3"], auxiliary: Float[Tensor, "frame bead 3"], context: Context
    ) -> tuple[Float[Tensor, "frame 2 bead 3"], Float[Tensor, "frame"]]:
        """z of local displacements and auxiliaries, and log |det| of the way there."""
        halves = [moved, auxiliary]
        log_det = moved.new_zeros(len(moved))
        for place in reversed(range(len(self.layers))):
            active = place % 2
            by = self.layers[place](halves[1 - active], context, self.embedding)
            halves[active] = (halves[active] - by.shift) * torch.exp(-by.log_scale)
            log_det = log_det - by.log_scale.sum((1, 2))
        return torch.stack(halves, 1), log_det

    def from_base(
        self, base: Float[Tensor, "frame 2 bead 3"], context: Context
    ) -> tuple[Float[Tensor, "frame bead 3"], Float[Tensor, "frame bead 3"]]:
        """Local displacements and auxiliaries of z."""
        halves = [base[:, 0], base[:, 1]]
        for place, layer in enumerate(self.layers):
            active = place % 2
            by = layer(halves[1 - active], context, self.embedding)
            halves[active] = halves[active] * torch.exp(by.log_scale) + by.shift
        return halves[0], halves[1]

    def _joint(self, positions: Tensor, auxiliary: Tensor, condition: Tensor) -> Float[Tensor, "frame"]:
        """log κ(y, a | c)."""
        context = self.context(condition)
        base, log_det = self.to_base(self.local(positions, condition, context), auxiliary, context)
        return self._log_base(base) + log_det - 3 * self.n_beads * math.log(self.unit_nm)

    def _log_scales(self) -> Float[Tensor, "2 bead 3"]:
        bound = 2 * LARGEST_LOG_SCALE
        return bound * torch.tanh(self.base / bound)

    def _log_base(self, base: Float[Tensor, "frame 2 bead 3"]) -> Float[Tensor, "frame"]:
        log_scales = self._log_scales()
        return _log_normal(base * torch.exp(-log_scales)) - log_scales.sum()

    def _draw(self, random: Float[Tensor, "frame 2 bead 3"], condition: Float[Tensor, "frame bead 3"]) -> Draw:
        with torch.no_grad():
            log_scales = self._log_scales()
            base = random * torch.exp(log_scales)
            context = Context(*(part.detach().requires_grad_() for part in self.context(condition)))
            log_density = _log_normal(random) - log_scales.sum() - 3 * self.n_beads * math.log(self.unit_nm)
        halves, slopes = list(base.unbind(1)), list((-random * torch.exp(-log_scales)).unbind(1))
        felt = [torch.zeros_like(part) for part in context]
        for place, layer in enumerate(self.layers):
            active = place % 2
            given = halves[1 - active].detach().requires_grad_()
            with torch.enable_grad():
                by = layer(given, context, self.embedding)
            with torch.no_grad():
                # x = (x' − T) exp(−S), and log κ(x') = log κ(x(x')) − Σ S
                along = slopes[active]
                slopes[active] = along * torch.exp(-by.log_scale)
                back = Coefficients(-halves[active] * along - 1.0, -slopes[active])
                halves[active] = halves[active] * torch.exp(by.log_scale) + by.shift
                log_density = log_density - by.log_scale.sum((1, 2))
            pulled, *parts = torch.autograd.grad(tuple(by), (given, *context), tuple(back))
            slopes[1 - active] = slopes[1 - active] + pulled
            felt = [total + part for total, part in zip(felt, parts, strict=True)]
        with torch.no_grad():
            turned = (halves[0][:, :, None] @ context.axes)[:, :, 0]
            positions = condition + self.unit_nm * turned
        with torch.enable_grad():
            leaves = positions.detach().requires_grad_(), condition.detach().requires_grad_()
            again = self.context(leaves[1])
            moved = self.local(*leaves, again)
            score, condition_score = torch.autograd.grad((moved, *again), leaves, (slopes[0], *felt))
        return _drawn(positions, halves[1], score, condition_score, log_density)

    def _at(self, values: Float[Tensor, "frame 2 bead 3"], condition: Float[Tensor, "frame bead 3"]) -> Draw:
        positions, auxiliary = values.unbind(1)
        with torch.enable_grad():
            leaves = positions.detach().requires_grad_(), condition.detach().requires_grad_()
            joint = self._joint(leaves[0], auxiliary, leaves[1])
            score, condition_score = torch.autograd.grad(joint.sum(), leaves)
        return _drawn(positions, auxiliary, score, condition_score, joint.detach())

    def _in_tiles(self, work: Callable[[Tensor, Tensor], Draw], values: Tensor, condition: Tensor) -> Draw:
        n_frames = max(1, ROWS // self.n_beads)
        tiles = zip(values.split(n_frames), condition.split(n_frames), strict=True)
        draws = [work(*tile) for tile in tiles]
        return Draw(*(torch.cat([getattr(draw, field.name) for draw in draws]) for field in fields(Draw)))

    def _features(self, condition: Tensor, axes: Tensor) -> Float[Tensor, "frame bead feature"]:
        """Vectors to all others in the axes of each bead, and distances; nm."""
        vectors = condition[:, None] - condition[:, :, None]
        inside = (vectors @ axes.transpose(-1, -2)).flatten(2)
        apart = vectors.square().sum(-1)
        itself = torch.eye(self.n_beads, dtype=torch.bool, device=condition.device)
        return torch.cat((inside, apart.masked_fill(itself, 1.0).sqrt().masked_fill(itself, 0.0)), -1)

    def _refuse_other_beads(self, *positions: Tensor) -> None:
        for found in {array.shape[1] for array in positions} - {self.n_beads}:
            raise UnknownBeads(
                f"the coupling flow of a molecule of {self.n_beads} beads",
                f"frames of {found} beads",
                "fit a flow to this molecule, or use the map that the flow was fitted with",
            )

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Embeddings from N(0, 1); weights uniform within 1/√(inputs), biases zero, the last layers zero."""
        key = stream(seed, "coupling")
        self.embedding.copy_(normals(key, self.embedding))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                uniform = key.random(tuple(module.weight.shape), dtype=np.float32) * 2 - 1
                module.weight.copy_(torch.from_numpy(uniform) / math.sqrt(module.in_features))
                if module.bias is not None:
                    module.bias.zero_()
        for layer in self.layers:
            for network in (layer.scale, layer.shift):
                network.last.weight.zero_()


def _log_normal(values: Float[Tensor, "frame *rest"]) -> Float[Tensor, "frame"]:
    """log N(values; 0, 1)."""
    flat = values.flatten(1)
    return -0.5 * flat.square().sum(1) - 0.5 * flat.shape[1] * math.log(2 * math.pi)


def _drawn(positions: Tensor, auxiliary: Tensor, score: Tensor, condition_score: Tensor, joint: Tensor) -> Draw:
    log_density = joint - _log_normal(auxiliary)
    failed = ~finite(positions, score, condition_score, log_density)
    return Draw(positions.detach(), score, condition_score, log_density, failed)


def _refuse_other_triangles(n_beads: int, triangles: Sequence[Sequence[int]]) -> None:
    named = [bead for triangle in triangles for bead in triangle]
    if len(triangles) != n_beads or not all(0 <= bead < n_beads for bead in named):
        raise UnknownBeads(
            f"a coupling flow for {n_beads} beads",
            f"triangles of {len(triangles)} beads that name beads up to {max(named, default=-1)}",
            "take the description and the weights of one and the same flow",
        )
