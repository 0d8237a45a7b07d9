"""Muon takes the steps that torch's takes, and each parameter has one optimizer."""
import multiprocessing
from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from model.optimizers import Muon, adamw_and_muon, orthogonalise, take_step


def matrices(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(0.1 * torch.randn(*shape, generator=generator)) for shape in ((6, 10), (10, 6), (6, 10), (8, 8))]


def test_the_steps_are_those_of_torch():
    """torch's orthogonalises in bfloat16: the same within its accuracy."""
    ours, theirs = matrices(), matrices()
    optimizers = Muon(ours, lr=0.02), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        for parameters in (ours, theirs):
            for i, parameter in enumerate(parameters):
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 * step + i))
        ours[2].grad = theirs[2].grad = None if step == 2 else ours[2].grad
        for optimizer in optimizers:
            optimizer.step()
    for start, one, other in zip(matrices(), ours, theirs):
        assert (one - other).norm() < 0.02 * (one - start).norm()


def five_steps(rank, size, store, results):
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", rank=rank, world_size=size, init_method=f"file://{store}")
    ours = matrices() + matrices(1)
    muon = Muon(ours, lr=0.02)
    for step in range(5):
        for i, parameter in enumerate(ours):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 * step + i))
        ours[2].grad = None if step == 2 else ours[2].grad  # three of one shape: two processes share two of them
        muon.step()
    results.put([parameter.detach().numpy() for parameter in ours])
    if size > 1:
        dist.destroy_process_group()


def test_processes_share_the_work_of_a_step(tmp_path):
    """Every one of them ends with what one process alone makes."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=five_steps, args=(rank, 2, tmp_path / "store", results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    ends = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    five_steps(0, 1, None, results)
    for alone, *shared in zip(results.get(timeout=60), *ends):
        assert (shared[0] == shared[1]).all()
        torch.testing.assert_close(torch.tensor(shared[0]), torch.tensor(alone), rtol=1e-3, atol=1e-4)


def test_orthogonalise_keeps_directions_and_evens_their_sizes():
    x = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    inner = u.mT @ orthogonalise(x).float() @ v.mT
    sizes = inner.diagonal(dim1=1, dim2=2)
    assert (sizes > 0.6).all() and (sizes < 1.3).all() and (inner - torch.diag_embed(sizes)).abs().max() < 0.05


def test_every_parameter_has_one_optimizer_and_both_continue_from_their_state():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    adamw, muon = adamw_and_muon(net.parameters(), [net[0].weight], 0.1)
    count = [sum(p.numel() for group in optimizer.param_groups for p in group["params"]) for optimizer in (adamw, muon)]
    assert count == [24, 16] and adamw_and_muon(net.parameters(), [], 0.1)[1] is None
    net(torch.ones(1, 4)).sum().backward()
    muon.step()
    twin = nn.Parameter(net[0].weight.detach().clone())
    twin.grad, other = net[0].weight.grad.clone(), Muon([twin], 0.5)
    other.load_state_dict(deepcopy(muon.state_dict()))
    muon.step()
    other.step()
    assert torch.equal(twin, net[0].weight)
    with pytest.raises(ValueError, match="two dimensions"):
        Muon([net[0].bias], 0.1)


def test_a_step_is_clipped_at_its_rate_and_leaves_no_gradient():
    """A single value, so that SGD's step is rate times gradient; that an optimizer is missing does not matter."""
    for gradient, step in ((4.0, 0.1), (0.5, 0.05)):
        weight = nn.Parameter(torch.zeros(1))
        weight.grad = torch.full((1,), gradient)
        take_step((torch.optim.SGD([weight], lr=9.0), None), [weight], 0.1)
        assert weight.item() == pytest.approx(-step, rel=1e-4) and weight.grad is None
