"""Weights of CoAtNet."""

import re

from cnn.pretrained import Layout, Naming, torch_layout

HEAD_WIDTH = 32


def layout(path: str, shape: tuple[int, ...]) -> Layout:
    """Dense layers of blocks are convolutions of size 1; theirs have queries, keys and values head by head."""
    if '/qkv/' in path:
        *inputs, outputs = shape
        split = (*inputs, 3, outputs // (3 * HEAD_WIDTH), HEAD_WIDTH)
        parts, heads, width = range(len(inputs), len(inputs) + 3)
        return Layout(split, (heads, parts, width, *range(len(inputs))), (outputs, *inputs, *(1, 1) * len(inputs)))
    inner = torch_layout(path, shape)
    if re.search(r'/(out|dense\d)/kernel$', path):
        return inner._replace(shape=(*inner.shape, 1, 1))
    return inner


NAMINGS = {
    'timm': Naming(
        (
            (r'^norm/', 'head/norm/'),
            (r'^hidden/', 'head/pre_logits/fc/'),
            (r'^head/(kernel|bias)$', r'head/fc/\1'),
            (r'/shortcut/conv/', '/shortcut/expand/'),
            (r'^(stage\d_block\d+)/norm/', r'\1/pre_norm/'),
            (r'/conv1/', '/conv1_1x1/'),
            (r'/conv2/', '/conv2_kxk/'),
            (r'/conv3/', '/conv3_1x1/'),
            (r'/squeeze_excite/reduce/', '/se/fc1/'),
            (r'/squeeze_excite/expand/', '/se/fc2/'),
            (r'_block0/attention_norm/', '_block0/norm1/norm/'),
            (r'/attention_norm/', '/norm1/'),
            (r'/mlp_norm/', '/norm2/'),
            (r'/attention/qkv/', '/attn/qkv/'),
            (r'/attention/out/', '/attn/proj/'),
            (r'/relative_position/table$', '/attn/rel_pos/relative_position_bias_table'),
            (r'/dense(\d)/', r'/mlp/fc\1/'),
            (r'^stage(\d)_block(\d+)/', lambda match: f'stages/{int(match[1]) - 1}/blocks/{match[2]}/'),
            (r'^stem_(conv\d)/', r'stem/\1/'),
            (r'^stem_norm/', 'stem/norm1/'),
        ),
        layout=layout,
    ),
}
