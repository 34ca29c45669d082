// conv2d with a ReLU and a max-pool behind it, on the CPU: see ops/fused_conv2d.h.
//
// The output is written piece by piece. A piece is some images, or, where one image is large, a
// band of its rows: the convolution writes the rows that the piece's windows cover into scratch
// memory of the cache's size, the ReLU goes over them there, and the pool reads them. Without a
// pool the scratch memory is the output itself.
//
// Every kernel gives the same bits for a part of its output as for the whole, if the part begins
// and ends at whole tiles of Winograd's forms: kTileRows. So bands do.
//
// Parallel over the pieces where there are enough of them, each computed by one thread; otherwise
// the threads share every piece.
#include "ops/fused_conv2d.h"

#include "cpu/planes.h"

NNOPS_BEGIN_KERNELS

// Of the convolution's output in a piece: what a core's cache holds beside what else the kernels
// use. Larger where there is no pool, as the piece leaves the cache anyway. An algorithm with large
// weights reads them once a piece, and gets larger ones.
constexpr int64_t kPooledPieceBytes = 192 << 10;
constexpr int64_t kPieceBytes = 768 << 10;
constexpr int64_t kMostPieceBytes = 4 << 20;
constexpr int64_t kWeightShare = 4;
// Where each piece would transform the weights anew.
constexpr int64_t kMostUnpackedBytes = 16 << 20;

// Rows of the output that Winograd's largest form computes together; a multiple of the others'.
constexpr int64_t kTileRows = 4;

// How a call is cut. `rows` counts rows of what is written: of the pool's output, or of the
// convolution's.
struct PiecePlan {
  int64_t images;  // of a piece
  int64_t rows;    // of a piece, all of an image where `images` is more than one
  int64_t bands;   // of an image
  int64_t pieces;
  bool apart;  // each piece is computed by one thread

  PiecePlan(const FusedConv2dCall& call, int64_t element_bytes, int threads)
      : apart(threads > 1 && !call.unpacked) {
    const FusedConv2dGeometry& g = call.g;
    const int64_t weighted = call.packed_bytes / kWeightShare;
    const int64_t least = g.pools ? kPooledPieceBytes : kPieceBytes;
    const int64_t bytes = larger(least, smaller(kMostPieceBytes, weighted));
    if (call.unpacked) {
      cut(call, element_bytes, kMostUnpackedBytes, 1);
      return;
    }
    cut(call, element_bytes, bytes, threads);
    // Too few pieces, or one thread would have too many more than another.
    if (apart && (pieces < threads || round_up(pieces, threads) * 8 > pieces * 9)) {
      apart = false;
      cut(call, element_bytes, bytes * threads, 1);
    }
  }

  static int64_t written_rows(const FusedConv2dGeometry& g) {
    return g.pools ? g.pool.oh : g.conv.oh;
  }

 private:
  void cut(const FusedConv2dCall& call, int64_t element_bytes, int64_t bytes, int64_t sharers) {
    const FusedConv2dGeometry& g = call.g;
    const Conv2dGeometry& conv = g.conv;
    const int64_t row_bytes = conv.oc * conv.ow * element_bytes;
    const int64_t all_rows = written_rows(g);
    // As large as fits, and as many for every sharer.
    const int64_t most = larger(1, bytes / (row_bytes * conv.oh));
    const int64_t groups = round_up(divide_up(conv.n, most), sharers);
    images = divide_up(conv.n, groups);
    const int64_t nearest = (images + call.together / 2) / call.together * call.together;
    if (nearest > 0) images = smaller(nearest, conv.n);
    rows = all_rows;
    const int64_t fitting = bytes / row_bytes;  // rows of the convolution
    if (images == 1 && fitting < conv.oh && can_be_cut(g)) {
      rows = smaller(all_rows, larger(least_rows(g), band_rows(g, fitting)));
    }
    bands = divide_up(all_rows, rows);
    pieces = divide_up(conv.n, images) * bands;
  }

  // Windows of many rows would compute most of them twice; beyond the input's last row a band would
  // have no input at all.
  static bool can_be_cut(const FusedConv2dGeometry& g) {
    const Conv2dGeometry& conv = g.conv;
    return (conv.oh - 1) * conv.stride_h - conv.pad_top < conv.h;
  }
  // Rows that neighbouring windows share.
  static int64_t overlap(const FusedConv2dGeometry& g) {
    if (!g.pools) return 0;
    return larger(0, (g.pool.kernel_h - 1) * g.pool.dilation_h + 1 - g.pool.stride_h);
  }
  // Rows whose bands begin and end at whole tiles.
  static int64_t row_unit(const FusedConv2dGeometry& g) {
    int64_t unit = 1;
    while (g.pools && unit * g.pool.stride_h % kTileRows != 0) ++unit;
    return g.pools ? unit : kTileRows;
  }
  // Of what a band computes, at most one row in kMostTwice is computed by its neighbour too.
  static int64_t least_rows(const FusedConv2dGeometry& g) {
    constexpr int64_t kMostTwice = 16;
    const int64_t unit = row_unit(g);
    if (overlap(g) == 0) return unit;
    const int64_t rows = kMostTwice * (overlap(g) + kTileRows - 1);
    return round_up(rows / g.pool.stride_h, unit);
  }
  static int64_t band_rows(const FusedConv2dGeometry& g, int64_t fitting) {
    const int64_t written = g.pools ? (fitting - overlap(g)) / g.pool.stride_h : fitting;
    return written / row_unit(g) * row_unit(g);
  }
};

struct Piece {
  int64_t image, images;
  int64_t begin, end;  // rows that are written
};
NNOPS_INLINE Piece piece_of(const FusedConv2dGeometry& g, const PiecePlan& plan, int64_t index) {
  const int64_t image = index / plan.bands * plan.images;
  const int64_t begin = index % plan.bands * plan.rows;
  return {image, smaller(plan.images, g.conv.n - image), begin,
          smaller(begin + plan.rows, PiecePlan::written_rows(g))};
}

// The rows of the convolution's output that a piece's windows cover, widened to whole tiles.
// Together the bands of an image cover it, so an algorithm that looks for numbers it cannot work on
// sees all of them.
NNOPS_INLINE Range conv_rows(const FusedConv2dGeometry& g, const Piece& piece) {
  Range rows{piece.begin, piece.end};
  if (g.pools) {
    const Pool2dGeometry& p = g.pool;
    const int64_t last = (piece.end - 1) * p.stride_h - p.pad_h;
    rows.begin = larger(0, piece.begin * p.stride_h - p.pad_h);
    rows.end = larger(last + (p.kernel_h - 1) * p.dilation_h + 1, last + p.stride_h);
  }
  const bool is_last = piece.end == PiecePlan::written_rows(g);
  rows.begin = smaller(rows.begin, g.conv.oh - 1) / kTileRows * kTileRows;
  rows.end = is_last ? g.conv.oh : smaller(g.conv.oh, round_up(rows.end, kTileRows));
  return rows;
}

// The convolution of `rows` of `images`, whose output has `strides`; `skipped` are rows of the
// input above the first that it reads.
NNOPS_INLINE Conv2dGeometry piece_geometry(const Conv2dGeometry& whole, int64_t images,
                                           const Range& rows, const Strides4& strides,
                                           int64_t* skipped) {
  Conv2dGeometry g = whole;
  const int64_t first = rows.begin * g.stride_h - g.pad_top;
  *skipped = larger(0, first);
  const int64_t last = (rows.end - 1) * g.stride_h - g.pad_top + (g.kh - 1) * g.dilation_h;
  g.n = images;
  g.pad_top = *skipped - first;
  g.h = larger(1, smaller(g.h, last + 1) - *skipped);
  g.oh = rows.end - rows.begin;
  g.output = strides;
  return g;
}

NNOPS_INLINE Strides4 scratch_strides(const FusedConv2dGeometry& g, int64_t rows) {
  const int64_t c = g.conv.oc;
  const int64_t w = g.conv.ow;
  if (g.conv.output.w != 1) return {rows * w * c, 1, w * c, c};
  return {c * rows * w, rows * w, w, 1};
}

constexpr int64_t kLineBytes = 64;

// What one worker needs, at most, for any of the pieces.
struct WorkerBytes {
  int64_t scratch = 0;
  int64_t conv = 0;

  int64_t total() const { return scratch + conv; }
};
template <typename T>
NNOPS_INLINE WorkerBytes worker_bytes(const FusedConv2dCall& call, const PiecePlan& plan,
                                      int threads) {
  const FusedConv2dGeometry& g = call.g;
  WorkerBytes most;
  const auto see = [&](int64_t index) {
    const Piece piece = piece_of(g, plan, index);
    const Range rows = conv_rows(g, piece);
    const int64_t height = rows.end - rows.begin;
    int64_t skipped = 0;
    const Conv2dGeometry conv =
        piece_geometry(g.conv, piece.images, rows, scratch_strides(g, height), &skipped);
    const int64_t elements = piece.images * g.conv.oc * height * g.conv.ow;
    if (g.pools) {
      most.scratch =
          larger(most.scratch, round_up(elements * static_cast<int64_t>(sizeof(T)), kLineBytes));
    }
    if (call.conv_workspace != nullptr) {
      const int64_t bytes = call.conv_workspace(conv, plan.apart ? 1 : threads);
      most.conv = larger(most.conv, round_up(bytes, kLineBytes));
    }
  };
  // Every image is cut alike; with several images a piece, the last one has fewer.
  for (int64_t band = 0; band < plan.bands; ++band) see(band);
  see(plan.pieces - 1);
  return most;
}

template <typename T>
int64_t fused_workspace(const FusedConv2dCall& call, int threads) {
  const PiecePlan plan(call, sizeof(T), threads);
  return worker_bytes<T>(call, plan, threads).total() * (plan.apart ? threads : 1);
}

// Where the ReLU let nothing pass, no gradient comes back.
template <typename T>
NNOPS_INLINE void mark_dead(uint8_t* offsets, const T* output, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const bool dead = to_acc(output[i]) <= 0;
    offsets[i] = dead ? kNoOffset : offsets[i];
  }
}

template <typename T>
class PieceRunner {
 public:
  PieceRunner(const FusedConv2dCall& call, const PiecePlan& plan, const WorkerBytes& bytes,
              void* workspace, int threads)
      : call_(call), plan_(plan), bytes_(bytes), workspace_(workspace), threads_(threads) {}

  void run(int64_t index, int64_t worker) const {
    const FusedConv2dGeometry& g = call_.g;
    const Piece piece = piece_of(g, plan_, index);
    const Range rows = conv_rows(g, piece);
    const int64_t height = rows.end - rows.begin;
    char* own = static_cast<char*>(workspace_) + worker * bytes_.total();
    void* conv_workspace = own + bytes_.scratch;
    T* map = reinterpret_cast<T*>(own);
    Strides4 strides = scratch_strides(g, height);
    if (!g.pools) {
      strides = g.conv.output;
      map = static_cast<T*>(call_.output) + piece.image * strides.n + rows.begin * strides.h;
    }
    int64_t skipped = 0;
    const Conv2dGeometry conv = piece_geometry(g.conv, piece.images, rows, strides, &skipped);
    const T* input =
        static_cast<const T*>(call_.input) + piece.image * conv.input.n + skipped * conv.input.h;
    call_.conv(map, input, call_.weight, call_.bias, conv, conv_workspace, threads_);
    if (call_.left_out != nullptr)
      note_left_out(piece, static_cast<const uint8_t*>(conv_workspace));
    if (g.relu) rectify(map, conv);
    if (g.pools) pool(map, conv, piece, rows);
  }

 private:
  void note_left_out(const Piece& piece, const uint8_t* flags) const {
    for (int64_t n = 0; n < piece.images; ++n) {
      if (flags[n] == 0) continue;
      __atomic_store_n(call_.left_out + piece.image + n, uint8_t{1}, __ATOMIC_RELAXED);
    }
  }

  void rectify(T* map, const Conv2dGeometry& conv) const {
    const int64_t rows = conv.oh * conv.ow;
    if (call_.g.pools || plan_.bands == 1 || conv.output.w != 1) {
      const int64_t count = conv.n * conv.oc * rows;
      call_.relu(map, map, count, threads_);
      return;
    }
    for (int64_t c = 0; c < conv.oc; ++c) {  // a band of rows in each plane of the output
      T* band = map + c * conv.output.c;
      call_.relu(band, band, rows, threads_);
    }
  }

  void pool(const T* map, const Conv2dGeometry& conv, const Piece& piece, const Range& rows) const {
    Pool2dGeometry p = call_.g.pool;
    // The first row that the piece's windows may cover.
    const int64_t window = piece.begin * p.stride_h - p.pad_h;
    const int64_t first = larger(window, rows.begin);
    p.n = piece.images;
    p.h = conv.oh - (first - rows.begin);
    p.oh = piece.end - piece.begin;
    p.pad_h = first - window;
    p.input_strides[0] = conv.output.n;
    p.input_strides[1] = conv.output.c;
    p.input_strides[2] = conv.output.h;
    p.input_strides[3] = conv.output.w;
    const int64_t place = piece.image * p.output_strides[0] + piece.begin * p.output_strides[2];
    T* output = static_cast<T*>(call_.output) + place;
    uint8_t* offsets = call_.offsets != nullptr ? call_.offsets + place : nullptr;
    const T* source = map + (first - rows.begin) * conv.output.h;
    const int64_t count = p.c * p.oh * p.ow;
    const bool whole = piece.end - piece.begin == call_.g.pool.oh;
    Pool2dGeometry stacked = p;
    if (whole) stack_planes(stacked);
    call_.pool(output, offsets, source, stacked, threads_);
    if (offsets == nullptr || !call_.g.relu) return;
    if (whole || p.channels_last) {
      mark_dead(offsets, output, p.n * count);
      return;
    }
    for (int64_t c = 0; c < p.c; ++c) {
      const int64_t plane = c * p.output_strides[1];
      mark_dead(offsets + plane, output + plane, p.oh * p.ow);
    }
  }

  const FusedConv2dCall& call_;
  const PiecePlan& plan_;
  const WorkerBytes& bytes_;
  void* workspace_;
  int threads_;  // of one piece
};

template <typename T>
void fused_run(const FusedConv2dCall& call, void* workspace, int threads) {
  const PiecePlan plan(call, sizeof(T), threads);
  const WorkerBytes bytes = worker_bytes<T>(call, plan, threads);
  const PieceRunner<T> runner(call, plan, bytes, workspace, plan.apart ? 1 : threads);
  if (!plan.apart) {
    for (int64_t index = 0; index < plan.pieces; ++index) runner.run(index, 0);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t index = 0; index < plan.pieces; ++index) runner.run(index, thread_index());
}

}  // namespace

extern const FusedConv2dKernels fused_conv2d_kernels = {NNOPS_ALL_DTYPES(fused_workspace),
                                                        NNOPS_ALL_DTYPES(fused_run)};

}  // namespace NNOPS_ISA
}  // namespace nnops
