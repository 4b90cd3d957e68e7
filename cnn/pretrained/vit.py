"""Weights of vision transformers."""

from cnn.pretrained import Naming

NAMINGS = {
    'torchvision': Naming(
        (
            (r'^patch_embedding/', 'conv_proj/'),
            (r'^position_embedding$', 'encoder/pos_embedding'),
            (r'^norm/', 'encoder/ln/'),
            (r'^head/', 'heads/head/'),
            (r'^block(\d+)/', lambda match: f'encoder/layers/encoder_layer_{int(match[1]) - 1}/'),
            (r'/norm(\d)/', r'/ln_\1/'),
            (r'/attention/qkv/(kernel|bias)$', r'/self_attention/in_proj_\1'),
            (r'_kernel$', '_weight'),
            (r'/attention/out/', '/self_attention/out_proj/'),
            (r'/dense1/', '/mlp/0/'),
            (r'/dense2/', '/mlp/3/'),
        ),
        older=((r'\.mlp\.linear_1\.', '.mlp.0.'), (r'\.mlp\.linear_2\.', '.mlp.3.')),
    ),
    'timm': Naming(
        (
            (r'^patch_embedding/', 'patch_embed/proj/'),
            (r'^position_embedding$', 'pos_embed'),
            (r'^class_token$', 'cls_token'),
            (r'^block(\d+)/', lambda match: f'blocks/{int(match[1]) - 1}/'),
            (r'/attention/qkv/', '/attn/qkv/'),
            (r'/attention/out/', '/attn/proj/'),
            (r'/dense(\d)/', r'/mlp/fc\1/'),
        )
    ),
}
