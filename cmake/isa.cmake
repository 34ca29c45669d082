# The ISA table: which levels exist on this processor, with their compiler flags.
# nnops_add_isa_sources(<target>) compiles every file under csrc/cpu once per level, each copy
# through a generated one-line file and in a namespace of its own.

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(NNOPS_ISA_LEVELS default avx2 avx512)
  set(NNOPS_ISA_FLAGS_default "")
  set(NNOPS_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
  set(NNOPS_ISA_FLAGS_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c
                             -mprefer-vector-width=512)
else()
  # The baseline of arm64 has NEON; no other processor has a special level.
  set(NNOPS_ISA_LEVELS default)
  set(NNOPS_ISA_FLAGS_default "")
endif()

# Of the AVX-512 level alone, and with more than it has: these kernels run only where the CPU was
# asked for that too (core/isa.h).
set(NNOPS_AVX512_BF16_SOURCES conv2d/pair_algorithms.cpp)

# No -ffast-math: NaN, Inf and -0.0 are part of the contract. No -march=native: the file must run
# on every CPU of the level.
set(NNOPS_KERNEL_FLAGS -O3 -fno-exceptions -fno-math-errno -fno-trapping-math -ffp-contract=fast -Wno-psabi
                       -Wno-ignored-attributes)

function(nnops_add_isa_sources target)
  file(GLOB_RECURSE kernel_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/cpu/*.cpp")
  set(isa_objects "")
  foreach(level IN LISTS NNOPS_ISA_LEVELS)
    set(copies "")
    foreach(source IN LISTS kernel_sources)
      file(RELATIVE_PATH relative "${PROJECT_SOURCE_DIR}/csrc/cpu" "${source}")
      set(copy "${PROJECT_BINARY_DIR}/isa/${level}/${relative}")
      if(relative IN_LIST NNOPS_AVX512_BF16_SOURCES)
        if(NOT level STREQUAL "avx512")
          continue()
        endif()
        set_source_files_properties("${copy}" PROPERTIES COMPILE_OPTIONS -mavx512bf16)
      endif()
      file(CONFIGURE OUTPUT "${copy}" CONTENT "#include \"${source}\"\n" @ONLY)
      list(APPEND copies "${copy}")
    endforeach()
    set(kernels "${target}_cpu_${level}")
    add_library(${kernels} OBJECT ${copies})
    target_include_directories(${kernels} PRIVATE "${PROJECT_SOURCE_DIR}/csrc")
    target_compile_definitions(${kernels} PRIVATE NNOPS_ISA=cpu_${level}
                                                  ${NNOPS_ISA_DEFINITIONS})
    target_compile_options(${kernels} PRIVATE ${NNOPS_KERNEL_FLAGS} ${NNOPS_ISA_FLAGS_${level}})
    target_link_libraries(${kernels} PRIVATE OpenMP::OpenMP_CXX)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${kernels}>)
    list(APPEND isa_objects $<TARGET_OBJECTS:${kernels}>)
  endforeach()
  add_custom_command(
    TARGET ${target}
    PRE_LINK
    COMMAND "${Python_EXECUTABLE}" "${PROJECT_SOURCE_DIR}/cmake/check_isa_objects.py"
            --nm "${CMAKE_NM}" ${isa_objects}
    COMMAND_EXPAND_LISTS VERBATIM
    COMMENT "Checking that no ISA object leaks a symbol")
endfunction()

set(NNOPS_ISA_DEFINITIONS "")
if("avx2" IN_LIST NNOPS_ISA_LEVELS)
  list(APPEND NNOPS_ISA_DEFINITIONS NNOPS_HAVE_AVX2)
endif()
if("avx512" IN_LIST NNOPS_ISA_LEVELS)
  list(APPEND NNOPS_ISA_DEFINITIONS NNOPS_HAVE_AVX512)
endif()
