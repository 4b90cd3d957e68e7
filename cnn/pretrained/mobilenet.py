"""Weights of MobileNets."""

from cnn.pretrained import Layout, Naming, Rules, pointwise

# A block's layers are numbered; the first block has no expansion, so that its numbers are lower by one.
FIRST: Rules = ((r'^(features/1/\w+)/(\d)/', lambda match: f'{match[1]}/{int(match[2]) - 1}/'),)
CONV_NORM: Rules = ((r'/conv/(?=\w+$)', '/0/'), (r'/norm/(?=\w+$)', '/1/'))


def torchvision_v3(variant: str, last: int, squeezed: str) -> Naming:
    """Of the network whose last convolution is layer `last` and whose blocks `squeezed` have squeeze-excitation."""
    return Naming(
        (
            (r'^stem/', 'features/0/'),
            (r'^last/', f'features/{last}/'),
            (r'^block', 'features/'),
            (r'/squeeze_excite/reduce/', '/block/2/fc1/'),
            (r'/squeeze_excite/expand/', '/block/2/fc2/'),
            (r'/expand/', '/block/0/'),
            (r'/depthwise/', '/block/1/'),
            (rf'^features/({squeezed})/project/', r'features/\1/block/3/'),
            (r'/project/', '/block/2/'),
            *FIRST,
            *CONV_NORM,
            (r'^hidden/', 'classifier/0/'),
            (r'^head/', 'classifier/3/'),
        ),
        variants=variant,
    )


def timm(variant: str, depths: tuple[int, ...], last: Rules) -> Naming:
    """Of the network whose stages, in timm's count, have so many blocks."""
    places = (f'blocks/{stage}/{block}/' for stage, depth in enumerate(depths) for block in range(depth))
    numbered = dict(enumerate(places, start=1))
    return Naming(
        (
            *last,
            (r'^stem/conv/', 'conv_stem/'),
            (r'^stem/norm/', 'bn1/'),
            (r'^block1/depthwise/norm/', 'block1/bn1/'),
            (r'^block1/project/conv/', 'block1/conv_pw/'),
            (r'^block1/project/norm/', 'block1/bn2/'),
            (r'/squeeze_excite/(reduce|expand)/', r'/se/conv_\1/'),
            (r'/expand/conv/', '/conv_pw/'),
            (r'/expand/norm/', '/bn1/'),
            (r'/depthwise/conv/', '/conv_dw/'),
            (r'/depthwise/norm/', '/bn2/'),
            (r'/project/conv/', '/conv_pwl/'),
            (r'/project/norm/', '/bn3/'),
            (r'^block(\d+)/', lambda match: numbered.get(int(match[1]), match[0])),
            (r'^hidden/', 'conv_head/'),
            (r'^head/', 'classifier/'),
        ),
        layout=pointwise(['hidden']),
        variants=variant,
    )


def tensorflow_layout(path: str, shape: tuple[int, ...]) -> Layout:
    """Ours, but that depthwise kernels are [H, W, C, 1] and the head is a 1x1 convolution."""
    axes = tuple(range(len(shape)))
    if path.endswith('/depthwise/conv/kernel'):
        height, width, one, channels = shape
        return Layout(shape, (0, 1, 3, 2), (height, width, channels, one))
    return Layout(shape, axes, (1, 1, *shape) if path == 'head/kernel' else shape)


NAMINGS = {
    'torchvision_v2': Naming(
        (
            (r'^stem/', 'features/0/'),
            (r'^last/', 'features/18/'),
            (r'^block', 'features/'),
            (r'/expand/', '/conv/0/'),
            (r'/depthwise/', '/conv/1/'),
            (r'/project/conv/', '/conv/2/'),
            (r'/project/norm/', '/conv/3/'),
            *FIRST,
            *CONV_NORM,
            (r'^head/', 'classifier/1/'),
        ),
        variants='v2',
    ),
    'torchvision_v3_small': torchvision_v3('v3_small', 12, '1|[4-9]|1[01]'),
    'torchvision_v3_large': torchvision_v3('v3_large', 16, '[456]|1[1-5]'),
    'timm_v2': timm('v2', (1, 2, 3, 4, 3, 3, 1), ((r'^last/conv/', 'conv_head/'), (r'^last/norm/', 'bn2/'))),
    'timm_v3_small': timm(
        'v3_small', (1, 2, 3, 2, 3), ((r'^last/conv/', 'blocks/5/0/conv/'), (r'^last/norm/', 'blocks/5/0/bn1/'))
    ),
    'timm_v3_large': timm(
        'v3_large', (1, 2, 3, 4, 2, 3), ((r'^last/conv/', 'blocks/6/0/conv/'), (r'^last/norm/', 'blocks/6/0/bn1/'))
    ),
    'keras': Naming(  # v1
        (
            (r'^stem/conv/', 'conv1/'),
            (r'^stem/norm/', 'conv1_bn/'),
            (r'^block(\d+)/depthwise/conv/kernel', r'conv_dw_\1/depthwise_kernel'),
            (r'^block(\d+)/depthwise/norm/', r'conv_dw_\1_bn/'),
            (r'^block(\d+)/project/conv/', r'conv_pw_\1/'),
            (r'^block(\d+)/project/norm/', r'conv_pw_\1_bn/'),
            (r'^head/', 'conv_preds/'),
        ),
        layout=tensorflow_layout,
        leaves=(
            (r'_bn/scale$', '_bn/gamma'),
            (r'_bn/bias$', '_bn/beta'),
            (r'/mean$', '/moving_mean'),
            (r'/var$', '/moving_variance'),
        ),
        outputs=-1,
        variants='v1.*',
    ),
    'tensorflow_slim': Naming(  # v1; with norm='none' as in files where the normalisations are folded into convolutions
        (
            (r'^stem/', 'MobilenetV1/Conv2d_0/'),
            (r'^block(\d+)/depthwise/conv/kernel', r'MobilenetV1/Conv2d_\1_depthwise/depthwise_weights'),
            (r'^block(\d+)/depthwise/', r'MobilenetV1/Conv2d_\1_depthwise/'),
            (r'^block(\d+)/project/', r'MobilenetV1/Conv2d_\1_pointwise/'),
            (r'^head/kernel', 'MobilenetV1/Logits/Conv2d_1c_1x1/weights'),
            (r'^head/bias', 'MobilenetV1/Logits/Conv2d_1c_1x1/biases'),
            (r'/conv/kernel$', '/weights'),
            (r'/conv/bias$', '/bn_offset'),
        ),
        layout=tensorflow_layout,
        leaves=(
            (r'/norm/scale$', '/BatchNorm/gamma'),
            (r'/norm/bias$', '/BatchNorm/beta'),
            (r'/norm/mean$', '/BatchNorm/moving_mean'),
            (r'/norm/var$', '/BatchNorm/moving_variance'),
        ),
        outputs=-1,
        ignored=r'global_step|.*/(ExponentialMovingAverage|RMSProp(_1)?)',
        variants='v1.*',
    ),
}
