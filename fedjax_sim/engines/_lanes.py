"""The lanes engine and its sharded form: a chunk of rounds as one compiled program, on one device or a mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_sim._src import checks, tree
from fedjax_sim._src.lean import lean
from fedjax_sim.data.plans import Plan
from fedjax_sim.engines._auto import FinishForm, Layout, choose, default_finish
from fedjax_sim.engines._chunk import Chunk, RoundReport
from fedjax_sim.engines._compiler import compiler_options
from fedjax_sim.engines._costs import step_flops
from fedjax_sim.engines._engine import Engine, RoundFn, programs
from fedjax_sim.engines._problem import Problem
from fedjax_sim.engines._state import ClientTable, SimState

AXIS = "clients"


def client_mesh(devices: int | None = None) -> Mesh:
    """A mesh of one axis, ``clients``, over the first ``devices`` devices (all by default).

    CPU cores become devices with ``jax.config.update("jax_num_cpu_devices", n)`` before JAX starts; the command line
    does that, the library does not.

    Raises:
      ValueError: more devices than there are.
    """
    available = jax.devices()
    count = len(available) if devices is None else devices
    checks.positive_int("devices", count)
    if count > len(available):
        raise ValueError(
            f"devices is {count}, but JAX sees {len(available)} of kind {available[0].platform}. For virtual CPU "
            f"devices call jax.config.update('jax_num_cpu_devices', {count}) before anything else touches JAX."
        )
    return Mesh(np.asarray(available[:count]), (AXIS,))


def lanes(lanes: int | Literal["auto"] = "auto", *, finish: FinishForm | Literal["auto"] = "auto") -> Engine:
    """Continuous batching of clients on one device: a chunk of rounds is one compiled program.

    Args:
      lanes: clients that train at a time. Results do not depend on it, speed and memory do. ``"auto"`` takes what
        ``Simulation.tune`` or ``fedjax-sim tune`` measured on this machine for these shapes, and goes by the size of a step
        on this backend where nothing was.
      finish: how lanes whose client is done are finished: ``"compact"`` one at a time, ``"masked"`` all lanes at
        once with a mask; ``"auto"`` is compact on CPU and masked elsewhere, or, where
        the lanes are ``"auto"``, too, what was measured.

    Raises:
      ValueError: a lane count below 1 or an unknown form.
    """
    return _engine("lanes", None, lanes, finish)


def sharded(
    mesh: Mesh | None = None,
    *,
    lanes: int | Literal["auto"] = "auto",
    finish: FinishForm | Literal["auto"] = "auto",
) -> Engine:
    """The lanes on every device of a mesh axis named ``clients``; one sum over devices per stage and round.

    The data is on every device. Clients that keep state live on a home device with their state.

    Args:
      mesh: from ``client_mesh``; all devices by default.
      lanes: per device.
      finish: as for ``lanes``.

    Raises:
      ValueError: a mesh whose axes are not ``("clients",)``.
    """
    mesh = client_mesh() if mesh is None else mesh
    if mesh.axis_names != (AXIS,):
        raise ValueError(
            f"mesh has axes {mesh.axis_names}, expected ('{AXIS}',): use fs.engines.client_mesh()."
        )
    return _engine("sharded", mesh, lanes, finish)


def _engine(name: str, mesh: Mesh | None, lanes, finish) -> Engine:
    if lanes != "auto":
        checks.positive_int("lanes", lanes)
    checks.one_of("finish", finish, ("auto", "compact", "masked"))

    def compile_(problem: Problem) -> RoundFn:
        return _LaneRounds(problem, mesh, lanes, finish)

    def at(layout: Layout) -> Engine:
        return _engine(name, mesh, *layout)

    return Engine(name, 1 if mesh is None else mesh.size, compile_, at)


class _LaneRounds(RoundFn):
    """Owns the jitted program, and where its arguments live."""

    def __init__(self, problem: Problem, mesh: Mesh | None, lanes, finish):
        self._problem, self._mesh = problem, mesh
        self._device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
        self._asked = lanes, finish
        self.layout = (
            None if lanes == "auto" else self._with(Layout(lanes, default_finish(self._device.platform)))
        )
        self._jitted: Any = None

    def _with(self, layout: Layout) -> Layout:
        """A layout with what was asked for by name."""
        lanes, finish = self._asked
        return Layout(
            layout.lanes if lanes == "auto" else lanes, layout.finish if finish == "auto" else finish
        )

    def _resolve(self, state: SimState, plan: Plan) -> Layout:
        """The layout, chosen at first use where the lanes are ``"auto"``."""
        if self.layout is None:
            devices = 1 if self._mesh is None else self._mesh.size
            self.layout = self._with(choose(self._problem, state, plan, self._device, devices))
        return self.layout

    def place_columns(self, columns: Mapping[str, np.ndarray | jax.Array]):
        sharding = None if self._mesh is None else NamedSharding(self._mesh, PartitionSpec())
        # A map of a file is an array of a class that JAX does not know.
        plain = {name: x if isinstance(x, jax.Array) else np.asarray(x) for name, x in columns.items()}
        return {name: jax.device_put(column, sharding) for name, column in plain.items()}

    def place_state(self, state: SimState) -> SimState:
        """A copy of the state on the engine's devices, which the compiled program may take over."""
        copy, mesh = jax.tree.map(lambda x: jnp.array(x, copy=True), state), self._mesh
        if mesh is None:
            return copy
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), self._state_specs(state, 0))
        return jax.tree.map(jax.device_put, copy, shardings)

    def place_clients(self, table: ClientTable) -> ClientTable:
        sharding = None if self._mesh is None else NamedSharding(self._mesh, self._row_spec(0))
        return jax.tree.map(lambda x: jax.device_put(x, sharding), table)

    def _row_spec(self, shift: int) -> PartitionSpec:
        replica_axes = (None,) if shift or self._problem.replicas is not None else ()
        return PartitionSpec(*replica_axes, AXIS)

    def _state_specs(self, state: SimState, shift: int) -> SimState:
        """Rows of the client table are split over devices; everything else is everywhere."""
        rows = self._row_spec(shift)
        everywhere = jax.tree.map(lambda x: PartitionSpec(), state)
        return SimState(
            everywhere.server,
            jax.tree.map(lambda x: rows, state.clients),
            everywhere.aggregate,
            everywhere.round,
            everywhere.key,
        )

    def lower(self, state, columns, plan, hyper=()):
        """The lowered program, to look at: ``.compile().memory_analysis()``, ``.as_text()``."""
        return self._program(state, plan).lower(state, columns, plan, hyper)

    def __call__(self, state, columns, plan, hyper=()) -> tuple[SimState, RoundReport]:
        return self._program(state, plan)(state, columns, plan, hyper)

    def compilations(self) -> int:
        """How many programs were compiled so far."""
        return 0 if self._jitted is None else programs(self._jitted)

    def _program(self, state, plan):
        if self._jitted is None:
            devices = 1 if self._mesh is None else self._mesh.size
            options = compiler_options(self._device.platform, step_flops(self._problem, state), devices)
            self._jitted = jax.jit(
                lean(self._function(state, plan)), donate_argnums=0, compiler_options=options
            )
        return self._jitted

    def _function(self, state, plan):
        axis = None if self._mesh is None else AXIS
        chunk = Chunk(self._problem, self._resolve(state, plan), axis)
        single = self._problem.replicas is None

        def run(state, columns, plan, hyper):
            if single:
                state, hyper = tree.expanded((state, hyper))
            body = chunk if self._mesh is None else self._shard(chunk, state, plan)
            state, reports = body(state, columns, plan, hyper)
            if single:
                state = tree.squeezed(state)
                metrics, finite = tree.squeezed((reports.metrics, reports.model_finite), axis=1)
                reports = reports._replace(metrics=metrics, model_finite=finite)
            return state, reports

        return run

    def _shard(self, chunk: Chunk, state, plan):
        over_devices = PartitionSpec(None, AXIS)
        everywhere = PartitionSpec()
        plan_specs = plan._replace(
            rounds=everywhere, clients=everywhere, queues=jax.tree.map(lambda x: over_devices, plan.queues)
        )
        state_specs = self._state_specs(state, 1)
        reports = RoundReport(everywhere, everywhere, over_devices, over_devices)
        return jax.shard_map(
            chunk,
            mesh=self._mesh,
            in_specs=(state_specs, everywhere, plan_specs, everywhere),
            # Sums over clients are equal on all devices by construction (psum), which the checker cannot follow
            # through loops of dynamic length.
            out_specs=(state_specs, reports),
            check_vma=False,
        )
