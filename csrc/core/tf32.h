// torch's switch for TF32 in convolutions: torch.backends.cudnn.conv.fp32_precision, of which
// torch.backends.cudnn.allow_tf32 is the older name. torch's default allows it.
#pragma once

namespace nnops {

// Whether float32 convolutions on CUDA may round their operands to TF32 (10 bits of mantissa). The
// switch lives in torch's C++ API, which the stable ABI does not reach, so Python is asked at the
// call. Ask last, where nothing else speaks against TF32.
bool conv_may_use_tf32();

// How to read the switch. Until this is called TF32 is not allowed.
void set_tf32_switch(bool (*read)());

}  // namespace nnops
