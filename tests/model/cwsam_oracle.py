"""CWSAM written a second time, in float64 and with loops: per window, per token, per expert, with NumPy's FFT.

Nothing here is shared with the package, so that an error would have to be made twice.
"""

import numpy as np
import torch
import torch.nn.functional as F


def logits(state, cfg, image):
    """(classes, S, S) of image (1, 3, S, S); ``state`` as in the checkpoint."""
    s = {name: torch.as_tensor(np.asarray(value)).double() for name, value in state.items()}
    features = encoder(s, cfg, image.double())
    dim, g = features.shape[0], features.shape[1]
    src = features + s["no_mask_embed.weight"][0][:, None, None]
    low = decoder(s, cfg, src, positions(s["pe_layer.positional_encoding_gaussian_matrix"], g), dim, g)
    size = (cfg.image_size, cfg.image_size)
    return F.interpolate(low[None], size, mode="bilinear", align_corners=False)[0]


def linear(s, name, x):
    return x @ s[f"{name}.weight"].T + s.get(f"{name}.bias", 0)


def layer_norm(s, name, x, eps, axis=-1):
    x = x.movedim(axis, -1)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
    return (x * s[f"{name}.weight"] + s[f"{name}.bias"]).movedim(-1, axis)


def low_pass(image, rate=0.25):
    """As it is described: origin in the middle, a square of ones, back, real part, magnitude."""
    height, width = image.shape[-2:]
    line = int((height * width * rate) ** 0.5 // 2)
    mask = np.zeros((height, width))
    mask[height // 2 - line : height // 2 + line, width // 2 - line : width // 2 + line] = 1
    axes = (-2, -1)
    spectrum = np.fft.fftshift(np.fft.fft2(image, norm="forward"), axes=axes) * mask
    return np.abs(np.real(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=axes), norm="forward")))


def scrambled(patches):
    """(g, g, D) -> (g g, D): channel c of token l is the flat element c g g + l."""
    flat, tokens = patches.flatten(), patches.shape[0] * patches.shape[1]
    return torch.stack([flat[token + tokens * torch.arange(patches.shape[2])] for token in range(tokens)])


def encoder(s, cfg, image):
    e, p = cfg.image_encoder, "image_encoder."
    generator = f"{p}prompt_generator."
    x = F.conv2d(image, s[f"{p}patch_embed.proj.weight"], s[f"{p}patch_embed.proj.bias"], e.patch)[0].permute(1, 2, 0)
    g = x.shape[0]
    filtered = torch.from_numpy(low_pass(image.numpy(), e.pass_rate))
    hand = f"{generator}prompt_generator.proj"
    handcrafted = F.conv2d(filtered, s[f"{hand}.weight"], s[f"{hand}.bias"], e.patch)[0].flatten(1).T
    both = handcrafted + linear(s, f"{generator}embedding_generator", scrambled(x))
    x = x + s[f"{p}pos_embed"][0]
    for i in range(e.depth):
        light = F.gelu(linear(s, f"{generator}lightweight_mlp_{i}.0", both))
        x = x + linear(s, f"{generator}shared_mlp", light).reshape(x.shape)
        x = block(s, f"{p}blocks.{i}.", x, 0 if i in e.global_blocks else e.window, e)
    x = F.conv2d(x.permute(2, 0, 1)[None], s[f"{p}neck.0.weight"])
    x = layer_norm(s, f"{p}neck.1", x, 1e-6, 1)
    x = F.conv2d(x, s[f"{p}neck.2.weight"], padding=1)
    assert x.shape[-1] == g
    return layer_norm(s, f"{p}neck.3", x, 1e-6, 1)[0]


def adapter(s, name, x):
    return linear(s, f"{name}.D_fc2", F.gelu(linear(s, f"{name}.D_fc1", x)))


def block(s, p, x, window, e):
    y, g = layer_norm(s, f"{p}norm1", x, 1e-6), x.shape[0]
    window = window or g
    attended = torch.zeros_like(x)
    for top in range(0, g, window):
        for left in range(0, g, window):
            tile = torch.zeros(window, window, x.shape[2], dtype=x.dtype)
            part = y[top : top + window, left : left + window]
            tile[: part.shape[0], : part.shape[1]] = part
            tile = attention(s, f"{p}attn.", tile, e.heads)
            tile = tile + adapter(s, f"{p}Space_Adapter", tile)
            attended[top : top + window, left : left + window] = tile[: part.shape[0], : part.shape[1]]
    x = x + attended
    n = layer_norm(s, f"{p}norm2", x, 1e-6).flatten(0, 1)
    return x + (mlp(s, f"{p}mlp.", n, e.experts, F.gelu) + 0.5 * adapter(s, f"{p}MLP_Adapter", n)).reshape(x.shape)


def attention(s, p, x, heads):
    side = x.shape[0]
    q, k, v = linear(s, f"{p}qkv", x.flatten(0, 1)).reshape(side * side, 3, heads, -1).permute(1, 2, 0, 3)
    row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
    offsets = s[f"{p}rel_pos_h"][row[:, None] - row + side - 1]
    offsets = offsets + s[f"{p}rel_pos_w"][column[:, None] - column + side - 1]
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + torch.einsum("hqc,qkc->hqk", q, offsets)
    return linear(s, f"{p}proj", (scores.softmax(-1) @ v).transpose(0, 1).reshape(x.shape))


def mlp(s, p, x, experts, act):
    if f"{p}lin1.weight" in s:
        return linear(s, f"{p}lin2", act(linear(s, f"{p}lin1", x)))
    return (expert_choice if f"{p}group_router.weight" in s else token_choice)(s, p, x, experts, act)


def token_choice(s, p, x, cfg, act):
    scores, out = linear(s, f"{p}gate", x), torch.zeros_like(x)
    for token in range(len(x)):
        best = sorted(range(scores.shape[1]), key=lambda e, t=token: (-scores[t, e].item(), e))[: cfg.chosen]
        for expert, weight in zip(best, scores[token, best].softmax(0), strict=True):
            name = f"{p}experts.{expert}"
            out[token] += weight * linear(s, f"{name}.2", act(linear(s, f"{name}.0", x[token])))
    return out


def expert_choice(s, p, x, cfg, act):
    out, group_of = torch.zeros_like(x), linear(s, f"{p}group_router", x).argmax(1).tolist()
    for group in range(cfg.groups):
        own = [token for token, g in enumerate(group_of) if g == group]
        for expert in range(cfg.count):
            scores = {token: (x[token] @ s[f"{p}expert_groups.{group}.router.weight"][expert]).item() for token in own}
            taken = sorted(own, key=lambda token: (-scores[token], token))[: int(cfg.capacity * len(own) / cfg.count)]
            total = sum(np.exp(scores[token]) for token in taken)
            for token in taken:
                shards = [f"{p}expert_groups.{group}.expert_shards.{expert}.{i}" for i in range(cfg.shards)]
                value = torch.cat([linear(s, f"{n}.3", act(linear(s, f"{n}.0", x[token]))) for n in shards])
                out[token] += np.exp(scores[token]) / total * value
    return out


def positions(matrix, g):
    grid = [[((x + 0.5) / g * 2 - 1, (y + 0.5) / g * 2 - 1) for x in range(g)] for y in range(g)]
    angles = 2 * np.pi * torch.tensor(grid).double() @ matrix
    return torch.cat([angles.sin(), angles.cos()], -1).reshape(g * g, -1)


def cross(s, p, q, k, v, heads):
    q, k, v = (
        linear(s, f"{p}.{n}_proj", x).reshape(len(x), heads, -1).transpose(0, 1)
        for n, x in (("q", q), ("k", k), ("v", v))
    )
    mixed = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return linear(s, f"{p}.out_proj", mixed.transpose(0, 1).flatten(1))


def decoder(s, cfg, src, pe, dim, g):
    d, t = cfg.mask_decoder, "mask_decoder.transformer."
    pe_q = q = torch.cat([s["mask_decoder.iou_token.weight"], s["mask_decoder.mask_tokens.weight"]])
    keys = src.flatten(1).T
    for i in range(d.depth):
        p = f"{t}layers.{i}."
        q = cross(s, f"{p}self_attn", q, q, q, d.heads) if i == 0 else q + cross(
            s, f"{p}self_attn", q + pe_q, q + pe_q, q, d.heads
        )  # fmt: skip
        q = layer_norm(s, f"{p}norm1", q, 1e-5)
        q = q + cross(s, f"{p}cross_attn_token_to_image", q + pe_q, keys + pe, keys, d.heads)
        q = layer_norm(s, f"{p}norm2", q, 1e-5)
        q = layer_norm(s, f"{p}norm3", q + mlp(s, f"{p}mlp.", q, d.experts, F.relu), 1e-5)
        keys = keys + cross(s, f"{p}cross_attn_image_to_token", keys + pe, q + pe_q, q, d.heads)
        keys = layer_norm(s, f"{p}norm4", keys, 1e-5)
    q = q + cross(s, f"{t}final_attn_token_to_image", q + pe_q, keys + pe, keys, d.heads)
    q = layer_norm(s, f"{t}norm_final_attn", q, 1e-5)
    maps = torch.cat([upscale(s, keys.T.reshape(dim, g, g)[None]), upscale(s, src[None])], 1)
    return class_logits(s, cfg, maps, hyper(s, d, q[1]))


def upscale(s, x, p="mask_decoder.output_upscaling"):
    x = F.conv_transpose2d(x, s[f"{p}.0.weight"], s[f"{p}.0.bias"], 2)
    x = F.gelu(layer_norm(s, f"{p}.1", x, 1e-6, 1))
    return F.gelu(F.conv_transpose2d(x, s[f"{p}.3.weight"], s[f"{p}.3.bias"], 2))


def hyper(s, d, token, p="mask_decoder.output_hypernetworks_mlps.0."):
    if f"{p}layers.0.weight" in s:
        return linear(s, f"{p}layers.2", F.relu(linear(s, f"{p}layers.1", F.relu(linear(s, f"{p}layers.0", token)))))
    return linear(s, f"{p}1", token_choice(s, f"{p}0.", token[None], d.head_experts, F.gelu)[0])


def class_logits(s, cfg, maps, weights, p="mask_decoder.cls_upscaling"):
    """All channels at once, as the reference computes them; channel = c * classes + class."""
    x = F.gelu(layer_norm(s, f"{p}.1", F.conv_transpose2d(maps, s[f"{p}.0.weight"], s[f"{p}.0.bias"], 2), 1e-6, 1))
    x = F.gelu(F.conv2d(x, s[f"{p}.3.weight"], s[f"{p}.3.bias"], 2, 3))[0]
    return sum(weight * x[c * cfg.classes : (c + 1) * cfg.classes] for c, weight in enumerate(weights))
