"""Weights of EfficientNets."""

from cnn.pretrained import Naming

NAMINGS = {
    'torchvision': Naming(
        (  # a block's layers are numbered; in the first stage there is no expansion, so that numbers are lower by one
            (r'^stem/', 'features/0/'),
            (r'^stage(\d)/', r'features/\1/'),
            (r'^(stage1_block\d+)/depthwise/', r'\1/0/'),
            (r'^(stage1_block\d+)/squeeze_excite/', r'\1/1/'),
            (r'^(stage1_block\d+)/project/', r'\1/2/'),
            (r'/squeeze_excite/', '/2/'),
            (r'/(\d)/reduce/', r'/\1/fc1/'),
            (r'/(\d)/expand/', r'/\1/fc2/'),
            (r'/(expand|fused|fused_expand)/', '/0/'),
            (r'/(depthwise|fused_project)/', '/1/'),
            (r'/project/', '/3/'),
            (r'/conv/', '/0/'),
            (r'/norm/', '/1/'),
            (r'^stage(\d)_block(\d+)/', r'features/\1/\2/block/'),
            (r'^head/', 'classifier/1/'),
        )
    ),
    'timm': Naming(
        (
            (r'^stem/conv/', 'conv_stem/'),
            (r'^stem/norm/', 'bn1/'),
            (r'^stage\d/conv/', 'conv_head/'),
            (r'^stage\d/norm/', 'bn2/'),
            (r'^(stage1_block\d+)/depthwise/norm/', r'\1/bn1/'),
            (r'^(stage1_block\d+)/project/conv/', r'\1/conv_pw/'),
            (r'^(stage1_block\d+)/project/norm/', r'\1/bn2/'),
            (r'/squeeze_excite/(reduce|expand)/', r'/se/conv_\1/'),
            (r'/expand/conv/', '/conv_pw/'),
            (r'/depthwise/conv/', '/conv_dw/'),
            (r'/depthwise/norm/', '/bn2/'),
            (r'/project/conv/', '/conv_pwl/'),
            (r'/project/norm/', '/bn3/'),
            (r'/fused/conv/', '/conv/'),
            (r'/fused_expand/conv/', '/conv_exp/'),
            (r'/(expand|fused|fused_expand)/norm/', '/bn1/'),
            (r'/fused_project/conv/', '/conv_pwl/'),
            (r'/fused_project/norm/', '/bn2/'),
            (r'^stage(\d)_block(\d+)/', lambda match: f'blocks/{int(match[1]) - 1}/{match[2]}/'),
            (r'^head/', 'classifier/'),
        )
    ),
}
