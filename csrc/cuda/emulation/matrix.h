// ldmatrix and mma.sync as operations of a whole warp, with the fragments of the PTX manual
// ("Matrix Fragments for mma.m16n8k16 with floating point type", "... mma.m16n8k8", "ldmatrix").
//
// A lane is 4 group + member. Of D (16 x 8, float32) it holds d[2 i + j] = D[group + 8 i]
// [2 member + j]; the fragments of A and B stand below. Products are exact in float32 for 8 and 11
// bits of mantissa and are added in the order of k; a GPU adds them in an order of its own.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/emulation/checks.h"
#include "cuda/emulation/runtime.h"

namespace nnops::cuda {

struct bfloat16;
struct float16;

// Whether there is an mma.sync for bfloat16 (and TF32): not before sm_80.
inline constexpr bool kMmaHasBFloat16 = true;

}  // namespace nnops::cuda

namespace nnops::emulation {

constexpr uint32_t kWholeWarp = 0xffffffff;

struct LoadMatrixOperands {
  const void* row;
  uint32_t* result;
};

// Matrix i consists of the 8 rows of 16 bytes that lanes 8 i to 8 i + 7 point to.
template <int kMatrices, bool kTransposed>
NNOPS_EMULATION_PRIMITIVE void combine_load_matrix(void* const operands[32], uint32_t) {
  for (int matrix = 0; matrix < kMatrices; ++matrix) {
    uint16_t elements[8][8];
    for (int row = 0; row < 8; ++row) {
      const auto& source = *static_cast<LoadMatrixOperands*>(operands[8 * matrix + row]);
      std::memcpy(elements[row], source.row, 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane / 4, member = lane % 4;
      const uint16_t low = kTransposed ? elements[2 * member][group] : elements[group][2 * member];
      const uint16_t high =
          kTransposed ? elements[2 * member + 1][group] : elements[group][2 * member + 1];
      static_cast<LoadMatrixOperands*>(operands[lane])->result[matrix] =
          low | static_cast<uint32_t>(high) << 16;
    }
  }
}

template <int kMatrices, bool kTransposed>
NNOPS_EMULATION_PRIMITIVE void load_matrix(uint32_t (&result)[kMatrices], const void* row,
                                           Site site) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("a row for ldmatrix is not aligned", site);
  // ldmatrix.x2 takes its addresses from the first half of the warp.
  if (lane_index() < 8 * kMatrices) check_read(row, 16, site);
  LoadMatrixOperands own{row, result};
  warp_operation("ldmatrix", kWholeWarp, &own, combine_load_matrix<kMatrices, kTransposed>, site);
}

template <bool kIsBFloat16>
NNOPS_EMULATION_PRIMITIVE float half_bits_to_float(uint32_t bits) {
  if constexpr (kIsBFloat16) {
    bits <<= 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  } else {
    const uint16_t half = static_cast<uint16_t>(bits);
    _Float16 value;
    std::memcpy(&value, &half, 2);
    return static_cast<float>(value);
  }
}

// The tensor cores read TF32 from the upper 19 bits.
NNOPS_EMULATION_PRIMITIVE float tf32_bits_to_float(uint32_t bits) {
  bits &= 0xffffe000;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

struct MmaOperands {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

template <int kK>
NNOPS_EMULATION_PRIMITIVE void multiply(void* const operands[32], const float (&a)[16][kK],
                                        const float (&b)[8][kK]) {
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<MmaOperands*>(operands[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      for (int k = 0; k < kK; ++k) d[i] += a[row][k] * b[column][k];
    }
  }
}

// 16 bits: register i of A holds A[group + 8 (i % 2)][2 member + 8 (i / 2) + (0, 1)], register i
// of B holds B[2 member + 8 i + (0, 1)][group].
template <bool kIsBFloat16>
NNOPS_EMULATION_PRIMITIVE void combine_mma_16(void* const operands[32], uint32_t) {
  float a[16][16], b[8][16];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<MmaOperands*>(operands[lane]);
    const int group = lane / 4, member = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) {
        a[group + 8 * (i % 2)][2 * member + 8 * (i / 2) + half] =
            half_bits_to_float<kIsBFloat16>(own.a[i] >> (16 * half));
      }
      for (int i = 0; i < 2; ++i) {
        b[group][2 * member + 8 * i + half] =
            half_bits_to_float<kIsBFloat16>(own.b[i] >> (16 * half));
      }
    }
  }
  multiply(operands, a, b);
}

// TF32: register i of A holds A[group + 8 (i % 2)][member + 4 (i / 2)], of B, B[member + 4
// i][group].
NNOPS_EMULATION_PRIMITIVE void combine_mma_tf32(void* const operands[32], uint32_t) {
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<MmaOperands*>(operands[lane]);
    const int group = lane / 4, member = lane % 4;
    for (int i = 0; i < 4; ++i) {
      a[group + 8 * (i % 2)][member + 4 * (i / 2)] = tf32_bits_to_float(own.a[i]);
    }
    for (int i = 0; i < 2; ++i) b[group][member + 4 * i] = tf32_bits_to_float(own.b[i]);
  }
  multiply(operands, a, b);
}

}  // namespace nnops::emulation

namespace nnops::cuda {

inline void load_matrix_x4(uint32_t (&r)[4], const void* shared_row,
                           emulation::Site site = std::source_location::current()) {
  emulation::load_matrix<4, false>(r, shared_row, site);
}
inline void load_matrix_x4_transposed(uint32_t (&r)[4], const void* shared_row,
                                      emulation::Site site = std::source_location::current()) {
  emulation::load_matrix<4, true>(r, shared_row, site);
}
inline void load_matrix_x2(uint32_t (&r)[2], const void* shared_row,
                           emulation::Site site = std::source_location::current()) {
  emulation::load_matrix<2, false>(r, shared_row, site);
}
inline void load_matrix_x2_transposed(uint32_t (&r)[2], const void* shared_row,
                                      emulation::Site site = std::source_location::current()) {
  emulation::load_matrix<2, true>(r, shared_row, site);
}

template <typename Number>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Number,
                  emulation::Site site = std::source_location::current()) {
  static_assert(std::is_same_v<Number, bfloat16> || std::is_same_v<Number, float16>);
  emulation::MmaOperands own{d, a, b};
  emulation::warp_operation("mma.m16n8k16", emulation::kWholeWarp, &own,
                            emulation::combine_mma_16<std::is_same_v<Number, bfloat16>>, site);
}

inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             emulation::Site site = std::source_location::current()) {
  emulation::MmaOperands own{d, a, b};
  emulation::warp_operation("mma.m16n8k8.tf32", emulation::kWholeWarp, &own,
                            emulation::combine_mma_tf32, site);
}

// Rounds to TF32, ties away from zero as cvt.rna does; the bits that mma_m16n8k8_tf32 takes.
inline uint32_t to_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7f800000) == 0x7f800000) return bits;  // Inf and NaN
  return (bits + 0x1000) & 0xffffe000;
}

}  // namespace nnops::cuda
